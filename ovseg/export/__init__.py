"""Export of the networks of a model as graphs that run without this package: ONNX, or PyTorch's exported programs."""
