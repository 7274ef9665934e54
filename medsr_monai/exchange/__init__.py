"""Networks in other runtimes' formats, ONNX and TorchScript: written and run."""
