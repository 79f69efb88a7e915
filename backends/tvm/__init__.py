"""Lowering of ONNX models to fast CPU code with Apache TVM. Import only where TVM is installed."""
