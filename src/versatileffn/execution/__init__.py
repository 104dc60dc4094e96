"""How a plan is carried out. Nothing here decides anything."""
