"""What every transpiled package is run by: loading, checking of arguments, weights. Needs numpy only."""
