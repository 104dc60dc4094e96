"""A task whose need of depth is known, token by token: does a controller learn to follow it?"""
