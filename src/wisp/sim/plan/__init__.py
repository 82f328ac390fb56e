"""Planning: which system to deploy on some machine for some devices, how many of them it serves, and what that costs."""
