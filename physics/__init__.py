"""Ground floor: mechanics, geometry and angles in torch and numpy; knows nothing of the rest."""
