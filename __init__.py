"""onnx-prune: prune ONNX models at graph level, prove the result, compile it."""
