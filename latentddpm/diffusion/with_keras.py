"""Schedules for Keras: their classes, registered so that Keras can save and load them.

The schedules themselves do without Keras. `utils.registration` imports this module when somebody
imports Keras.
"""

import keras

from latentddpm.diffusion.schedules import CLASSES

for schedule in CLASSES.values():
    keras.saving.register_keras_serializable(package="latentddpm")(schedule)
