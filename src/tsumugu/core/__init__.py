"""The ground floor: errors, configurations, the registry, tensor formats. Imports nothing of the house and no torch."""
