"""Networks written in other runtimes' formats, ONNX and TorchScript, and run from them."""
