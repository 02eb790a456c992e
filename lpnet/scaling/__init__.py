"""Scaling studies, measured and modelled: `python -m lpnet.scaling`.

    strong    N layers on more and more ranks                       S(P) = t_serial / t(P),  ideal P
    weak      N/P layers a rank, T and N grow together, h fixed     E(P) = t(P₀) / t(P),     ideal 1

Three kinds of time, which are never mixed in one curve or ratio (`points`): "wall" of ranks that run at once, "virtual"
of real ranks with clocks of their own (`lpnet.virtual`), "simulated" from measured costs of steps (`lpnet.cost`). The
last two are modelled.
"""
