"""What decides the result of each stage: resolved parameters, numerical code, torch's version."""
