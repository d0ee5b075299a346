"""Recipe of a whole run, from a folder to a model: facts, rules, measured times, plan, stages."""
