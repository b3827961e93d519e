"""The execution engine: drives claimed runs, knows neither handlers above it nor backends below the contract."""
