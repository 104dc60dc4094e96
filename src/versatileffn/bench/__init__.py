"""Time, memory and FLOPs of the layer and of whole models, measured beside the alternatives."""
