"""One mechanism for everything that is written: durable files, locks, manifests, folders.

And one for processes that write at once, which end with the one that began them.
"""
