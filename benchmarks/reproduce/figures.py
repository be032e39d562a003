"""The figures, by the functions of the report."""


def shown(scale, name, results):
    return []


def draw(scale, name, runs, results):
    return []
