"""One mechanism for everything that is written: durable files, locks, manifests, folders."""
