"""What a model costs and where it spends its loops: FLOPs, parameters, loop statistics."""
