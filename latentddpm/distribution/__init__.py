"""Distribution: replicas and processes of a `tf.distribute` strategy, and sums over them."""
