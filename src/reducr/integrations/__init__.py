"""Selection inside training loops: plain PyTorch (``loop``) and Lightning (``lightning``)."""
