"""What holds this package's own goals to the clock; users measure by `versatileffn bench`."""
