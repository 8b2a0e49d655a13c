"""What the paper has: its tables and figures, with the numbers that it published.

Berman, Naiman, Eliasof, Zisling and Azencot, *One-Step Offline Distillation of Diffusion-based
Models via Koopman Modeling* (2025). No other module holds a number of the paper's.
"""

from typing import Literal, NamedTuple

from kdm_core.errors import KDMError

Kind = Literal["sweep", "run", "study", "timing", "settings", "people", "drawing", "several"]
TEACHER = "teacher"
"""In place of a student, in `Published.student`."""


class Published(NamedTuple):
    """A column or row of the paper's.

    Attributes:
        name: as the paper calls it.
        fid, inception: FID and Inception score; None where the paper has none.
        key: the experiment of ours that stands beside it, by the end of its name.
        preset, student: of which preset and student it is, where no sweep is made.
    """

    name: str
    fid: float | None
    inception: float | None = None
    key: str = ""
    preset: str = ""
    student: str = ""


class Item(NamedTuple):
    """A table or figure.

    Attributes:
        title: what it shows, in a line.
        kind: how it is reproduced.
        place: where in the paper it stands.
        presets: those that are the paper's own settings for it.
        published: its numbers, as far as they are ours to compare with.
        said: a number that the paper has in words alone.
        studies: whose pictures are the figure.
        names: of which others it consists.
        seen: what is to be seen in it.
    """

    title: str
    kind: Kind
    place: str
    presets: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()
    said: str = ""
    studies: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    seen: str = ""


class ReproductionError(KDMError):
    """A table or figure cannot be reproduced here; the message says the way out."""


SIZES = (Published("20M", 10.2, 8.50, "20of62"), Published("38M", 5.04, 9.12, "38of62"),
         Published("84M", 4.89, 9.11, "84of62"))
PARAMETERS = {"20of62": 20, "38of62": 38, "84of62": 84}
"""Millions of the columns of table 9."""
OWN_PARAMETERS = 62
"""Millions of the student of all other tables (table 4); 14.7 of them are LPIPS's VGG16."""
LATENTS = {"1x": 1, "4x": 4, "9x": 9}
"""Table 6's sizes of the latent over that of the student of all other tables, 1024."""
PAIRS = {"quarter": 4, "half": 2, "all": 1}
"""Figure 5B's numbers of pairs, as parts of the million of all other tables."""
VICINITY = ("Rows of samples from one noise that is perturbed more and more to the right, the "
            "teacher's and the student's: both should change alike.")
GRIDS = ("Samples of the teacher and of the student from the same noise, at the same places of two "
         "grids.")

ITEMS = {
    "table1": Item(
        "unconditional CIFAR-10: FID and Inception score", "run", "section 6.2, table 1",
        ("cifar10", "cifar10-fm"),
        (Published("EDM, 35 evaluations", 2.04, 9.84, preset="cifar10", student=TEACHER),
         Published("KDM (EDM)", 4.97, 9.22, preset="cifar10", student="paper"),
         Published("KDM-F (EDM)", 4.68, 9.08, preset="cifar10", student="paper-f"),
         Published("KDM (FM)", 5.91, 8.86, preset="cifar10-fm", student="paper"))),
    "table2": Item(
        "class-conditional CIFAR-10: FID and Inception score", "run", "section 6.2, table 2",
        ("cifar10-cond",),
        (Published("KDM (EDM)", 3.56, 9.54, preset="cifar10-cond", student="paper"),
         Published("KDM-F (EDM)", 3.24, 9.68, preset="cifar10-cond", student="paper-f"))),
    "table3": Item(
        "FFHQ and AFHQv2 at 64×64: FID and Inception score", "run", "section 6.2, table 3",
        ("ffhq64", "afhqv2"),
        (Published("FFHQ, EDM, 79 evaluations", 2.47, 3.37, preset="ffhq64", student=TEACHER),
         Published("FFHQ, KDM (EDM)", 6.54, 3.12, preset="ffhq64", student="paper"),
         Published("AFHQv2, EDM, 79 evaluations", 2.02, 9.04, preset="afhqv2", student=TEACHER),
         Published("AFHQv2, KDM (EDM)", 4.85, 8.25, preset="afhqv2", student="paper"))),
    "table4": Item(
        "parameters, and times of training and sampling, beside GET", "timing",
        "section 6.3, table 4", ("cifar10",),
        said="on an RTX 4090 a training step of batch 128 takes GET 3.60 s and KDM 0.91 s (KDM-F "
             "0.97 s), and sampling 937 s and 114 s (116 s); parameters 62, 62 and 65 million"),
    "table5": Item(
        "which of the losses a student is trained with", "sweep", "appendix D.1, table 5",
        ("cifar10",),
        (Published("lat", 487, 1.00, "lat"), Published("pred", 11.2, 8.23, "pred"),
         Published("rec", 457, 1.00, "rec"), Published("lat + pred", 9.53, 8.82, "lat-pred"),
         Published("rec + pred", 10.7, 8.26, "rec-pred"),
         Published("rec + lat", 11.16, 8.68, "rec-lat"),
         Published("Koopman", 7.83, 8.83, "koopman"), Published("all", 4.97, 9.22, "all"))),
    "table6": Item(
        "sizes of the latent, and so of the Koopman matrix", "sweep", "appendix D.1, table 6",
        ("cifar10",),
        (Published("1024", 5.08, key="1x"), Published("4096", 7.24, key="4x"),
         Published("9216", 9.41, key="9x"))),
    "table7": Item(
        "settings of the training", "settings", "appendix E.3, table 7",
        ("checkerboard-paper", "cifar10", "ffhq64", "afhqv2")),
    "table8": Item(
        "whose images people find more realistic", "people", "appendix E.4, table 8", ("ffhq64",),
        said="of 300 choices 55 % were for the student's collage and 45 % for the teacher's"),
    "table9": Item("sizes of the student", "sweep", "appendix E.5, table 9", ("cifar10",), SIZES),
    "figure1": Item(
        "how a student works, a drawing", "drawing", "section 1, figure 1"),
    "figure2": Item(
        "what becomes what sample lies together in the noise", "study", "section 4, figure 2",
        ("checkerboard-paper", "checkerboard"), studies=("semantics",),
        seen="The noise in the colours of the samples' clusters: of a trained teacher, and of its "
             "student, noises of one colour lie together."),
    "figure3": Item(
        "neighbours of a noise on FFHQ, teacher and student", "study", "section 6.1, figure 3",
        ("ffhq64",), studies=("vicinity",), seen=VICINITY),
    "figure4": Item(
        "FFHQ: the same noise through teacher and student", "study", "section 6.1, figure 4",
        ("ffhq64",), studies=("grids",), seen=GRIDS),
    "figure5": Item(
        "sizes of the student, numbers of pairs, outliers", "several", "section 6, figure 5",
        names=("figure5a", "figure5b", "figure5c")),
    "figure5a": Item(
        "sizes of the student, as table 9", "sweep", "section 6.2, figure 5A", ("cifar10",), SIZES),
    "figure5b": Item(
        "numbers of pairs", "sweep", "section 6.2, figure 5B", ("cifar10",),
        (Published("250K", None, key="quarter"), Published("500K", None, key="half"),
         Published("1M", None, key="all")),
        said="from 250K to 1M pairs FID falls by about 33 %; the figure's points have no "
             "numbers in the text"),
    "figure5c": Item(
        "outliers of the student, traced back to the noise", "study", "section 6.1, figure 5C",
        ("checkerboard-paper", "checkerboard"), studies=("outliers",),
        seen="Samples that belong to no cluster, and the noise that they were made of: it lies in "
             "the tails, or where two cells' regions meet."),
    "figure6": Item("FFHQ: grids of both models", "study", "appendix D.2, figure 6", ("ffhq64",),
                    studies=("grids",), seen=GRIDS),
    "figure7": Item("FFHQ: more grids of both models", "study", "appendix D.2, figure 7",
                    ("ffhq64",), studies=("grids",), seen=GRIDS),
    "figure8": Item("CIFAR-10: grids of both models", "study", "appendix D.2, figure 8",
                    ("cifar10",), studies=("grids",), seen=GRIDS),
    "figure9": Item("class-conditional CIFAR-10: grids of both models", "study",
                    "appendix D.2, figure 9", ("cifar10-cond",), studies=("grids",), seen=GRIDS),
    "figure10": Item("neighbours of a noise on AFHQv2", "study", "appendix D.2, figure 10",
                     ("afhqv2",), studies=("vicinity",), seen=VICINITY),
    "figure11": Item("neighbours of a noise on class-conditional CIFAR-10", "study",
                     "appendix D.2, figure 11", ("cifar10-cond",), studies=("vicinity",),
                     seen=VICINITY),
    "figure12": Item("neighbours of a noise on CIFAR-10", "study", "appendix D.2, figure 12",
                     ("cifar10",), studies=("vicinity",), seen=VICINITY),
    "figure13": Item(
        "outliers of the student and of the teacher", "study", "appendix E.6, figure 13",
        ("checkerboard-paper", "checkerboard"), studies=("outliers",),
        seen="Outliers of both models over samples and noise: the student's are largely its "
             "teacher's."),
}
"""All of them, by the names that the command takes."""

SETTINGS: dict[str, dict[str, float]] = {
    "checkerboard-paper": {"batch": 4096, "lr": 3e-4, "steps": 800_000, "latent_noise": 0.4,
                           "adversarial": 0.01, "latent": 1024},
    "cifar10": {"batch": 128, "lr": 3e-4, "steps": 800_000, "channels": 64, "latent_noise": 0.4,
                "adversarial": 0.01, "latent": 1024},
    "ffhq64": {"batch": 64, "lr": 3e-4, "steps": 800_000, "channels": 32, "projected_channels": 1,
               "latent_noise": 0.4, "adversarial": 0.01, "latent": 512},
    "afhqv2": {"batch": 64, "lr": 3e-4, "steps": 800_000, "channels": 32, "projected_channels": 1,
               "latent_noise": 0.4, "adversarial": 0.01, "latent": 512},
}
"""Table 7. Its linear module is `projected_channels: 1`; CIFAR-10's one channel out of the U-Net
is the latent of 1024 = 32 × 32."""


def item(name: str) -> Item:
    """A table or figure.

    Raises:
        ReproductionError: the paper has none of that name.
    """
    if name not in ITEMS:
        raise ReproductionError(f"the paper has no '{name}'; `kdm reproduce --list` names all that "
                                "there is, table1 to table9 and figure1 to figure13")
    return ITEMS[name]
