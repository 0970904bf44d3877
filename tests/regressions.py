"Nets that once failed, shrunk: specs of `nets.build`, each with what went wrong."

REGRESSIONS = {}
