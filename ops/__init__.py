"""How the service is run, watched, broken and measured; the product's own code never imports it."""
