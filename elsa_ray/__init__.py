"""elsa_ray: fine-tune split language models over simulated edge networks, on Ray."""
