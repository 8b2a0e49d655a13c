"""A student to be touched: what `kdm play` draws, and the page on which it shows it."""
