"""What each profile says of small models, found by reading the profile and not by running anything."""

from __future__ import annotations

from truths_clusters import XNNPACK
from truths_groups import ASCEND, ETHOS, ROCKCHIP, VITIS
from truths_libraries import CUSPARSELT, HIPSPARSELT
from truths_models import Truth
from truths_nvidia import NVIDIA
from truths_ratios import APPLE, ONNX_PRUNE, OPENVINO_CPU, OPENVINO_NPU
from truths_sizes import ARTPEC_8, ARTPEC_9, QUALCOMM, TI

PROFILES: dict[str, list[Truth]] = {
    "apple": APPLE,
    "ascend-2:4": ASCEND,
    "axis-artpec": ARTPEC_9,
    "axis-artpec-8": ARTPEC_8,
    "cusparselt": CUSPARSELT,
    "ethos-u": ETHOS,
    "hipsparselt": HIPSPARSELT,
    "nvidia-2:4": NVIDIA,
    "onnx-prune": ONNX_PRUNE,
    "openvino-cpu": OPENVINO_CPU,
    "openvino-npu": OPENVINO_NPU,
    "qualcomm-htp": QUALCOMM,
    "rockchip-rk3576": ROCKCHIP,
    "ti-npu": TI,
    "vitis-ai": VITIS,
    "xnnpack": XNNPACK,
}
