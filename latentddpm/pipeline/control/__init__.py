"""Control of a model by ControlNets: their folders, and the pictures that they see."""
