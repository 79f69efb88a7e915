"""What each profile says of small models, found by reading the profile and not by running anything."""

from __future__ import annotations

from truths_models import Truth
from truths_nvidia import CUSPARSELT, HIPSPARSELT, NVIDIA

PROFILES: dict[str, list[Truth]] = {
    "cusparselt": CUSPARSELT,
    "hipsparselt": HIPSPARSELT,
    "nvidia-2:4": NVIDIA,
}
