"""All experiments, in the order of the gallery. A new one is a module and a row."""

from lpnet.experiments.base import Experiment

_ROWS = (
    (1, "orders", "A residual network is forward Euler; orders of the steppers"),
    (2, "width", "Width: what a deformation of the plane cannot do"),
    (3, "control", "Supervised learning as optimal control"),
    (4, "adjoints", "Discretise and differentiate, in which order"),
    (5, "gradients", "The adjoint against finite differences and autograd"),
    (6, "multilevel", "Multilevel training"),
    (7, "surface", "The loss surface, rough with few layers and smooth with many"),
    (8, "flow", "Stability of the flow: growing, neutral and decaying"),
    (9, "spectra", "Antisymmetric and Hamiltonian layers: eigenvalues on the imaginary axis"),
    (10, "steppers", "Stability of the discretisation: limits of the steppers"),
    (11, "reversible", "Verlet and leapfrog are reversible: no memory of depth"),
    (12, "limits", "Limits of reversibility: 0 < αβ < 4"),
    (13, "peaks", "Peaks: an unstable, a medium and a stable network"),
    (14, "ellipses", "Ellipses: 2D Hamiltonian networks from 2 to 1024 layers"),
    (15, "swissroll", "The swiss roll from few layers to 1024"),
    (16, "parallel", "Layer parallelism: cycles that do not grow with N, and scaling"),
    (17, "training", "Training in parallel over the layers: the serial curve in less time"),
)

REGISTRY: dict[str, Experiment] = {name: Experiment(number, name, title) for number, name, title in _ROWS}
