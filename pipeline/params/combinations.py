"""What the sections of params.yaml require of one another, before any data are known."""

from typing import TYPE_CHECKING

from kdm_core.datasets import NoDataConfig
from kdm_core.datasets.checkerboard import CheckerboardConfig
from kdm_core.decoders import AutoencoderSource, TrainedAutoencoder
from kdm_core.errors import KDMError
from kdm_core.importers import FolderSource
from kdm_core.losses.distances import LPIPSConfig
from kdm_core.networks import is_spatial
from pipeline.params.teacher import ExactTeacher, NoTeacher, TrainedTeacher

if TYPE_CHECKING:
    from pipeline.params.run import Params


def require_all(params: "Params") -> None:
    """Make sure that all sections go with one another.

    Raises:
        ValueError: some do not; the message names the parameter and the way out.
    """
    require_pairs_alone(params)
    if isinstance(params.data, CheckerboardConfig):
        require_points(params)
    if params.autoencoder is not None:
        require_latents(params, params.autoencoder)
    require_labels(params)
    require_guidance(params)
    require_states(params)
    require_network(params)
    require_classifier(params)


def require_pairs_alone(params: "Params") -> None:
    """Where there is no teacher, or there are no data, nothing may ask for them."""
    problems = []
    without_teacher = isinstance(params.teacher, NoTeacher)
    if without_teacher and params.pairs.source != "store":
        problems.append("teacher.source: without a teacher nothing can sample pairs: take over "
                        "those that there are (pairs: {source: store, location: …})")
    if isinstance(params.data, NoDataConfig):
        if params.pairs.source != "store":
            problems.append("data.source: without data the pairs must be there already (pairs: "
                            "{source: store, location: …})")
        if isinstance(params.teacher, TrainedTeacher | ExactTeacher):
            problems.append(f"teacher.source: {params.teacher.source} takes data, and there are "
                            "none; use none, or import one")
        if params.evaluation.reference != "test":
            problems.append("evaluation.reference: without data students are compared with samples "
                            "of the teacher that none has learned from; set it to test")
        if params.filter.copies:
            problems.append("filter.copies: without data nothing is a copy of them; leave it out")
    for name, student in params.students.items():
        if without_teacher and student.init == "teacher":
            problems.append(f"students.{name}.init: there is no teacher whose weights could be "
                            "taken; use auto or random")
        for where, losses in student.placed_losses():
            place = f"students.{name}.{where}losses"
            if without_teacher and "teacher" in losses.asked_networks:
                problems.append(f"{place}: there is no teacher whose features could be used; use "
                                "vgg16 or classifier")
            if isinstance(params.data, NoDataConfig) and losses.takes_data:
                problems.append(f"{place}: there are no data; set real to pairs")
    if problems:
        raise ValueError("\n  ".join(problems))


def require_points(params: "Params") -> None:
    problems = []
    if getattr(params.pairs, "sample_dtype", None) == "uint8":
        problems.append("pairs.sample_dtype: uint8 is for images; points need float32")
    if params.reference.classifier is not None:
        problems.append("reference.classifier: points have no classifier; set it to null")
    if params.evaluation.extractors:
        problems.append("evaluation.extractors: they are for images; leave them out")
    problems += [f"filter.{problem}" for problem in params.filter.problems_with("points")]
    if isinstance(params.teacher, TrainedTeacher):
        network = params.teacher.model.network
        if is_spatial(network):
            problems.append(f"teacher.model.network.kind: {network.kind} is for images; "
                            "use mlp")
    for name, student in params.students.items():
        for part, own in student.model.networks().items():
            if is_spatial(own):
                problems.append(f"students.{name}.model.{part}.kind: {own.kind} is for "
                                "images; use mlp")
        for where, losses in student.placed_losses():
            if isinstance(losses.distance, LPIPSConfig):
                problems.append(f"students.{name}.{where}losses.distance.kind: LPIPS is for "
                                "images; use mse or pseudo_huber")
            if losses.adversarial and losses.adversary.network == "paper":
                problems.append(f"students.{name}.{where}losses.adversary.network: the paper's "
                                "discriminator is for images; use features, with those of the "
                                "teacher, or set adversarial to 0")
    if problems:
        raise ValueError("data.source is checkerboard, whose samples are points:\n  "
                         + "\n  ".join(problems))


def require_latents(params: "Params", autoencoder: AutoencoderSource) -> None:
    problems = []
    if isinstance(params.data, CheckerboardConfig):
        problems.append("autoencoder: points have none; leave it out")
    if isinstance(params.data, NoDataConfig) and isinstance(autoencoder, TrainedAutoencoder):
        problems.append("autoencoder.source: train takes images, and there are no data; name the "
                        "autoencoder whose latents the pairs are (folder, diffusers)")
    if getattr(params.pairs, "sample_dtype", None) == "uint8":
        problems.append("pairs.sample_dtype: uint8 is for images; latents need float16")
    if isinstance(params.data, NoDataConfig) and params.reference.classifier is not None:
        problems.append("reference.classifier: it is trained on images, and there are latents "
                        "alone; set it to null")
    problems += [f"filter.{problem}" for problem in params.filter.problems_with("latents")]
    for name, student in params.students.items():
        for where, losses in student.placed_losses():
            place = f"students.{name}.{where}losses"
            if isinstance(losses.distance, LPIPSConfig):
                problems.append(f"{place}.distance.kind: LPIPS is for images, and gradients do not "
                                "pass through a decoder; use mse or pseudo_huber")
            if outside := sorted(set(losses.asked_networks) - {"teacher"}):
                problems.append(f"{place}: {', '.join(outside)} takes images, and students make "
                                "latents; use features of the teacher")
    if problems:
        raise ValueError("models learn the latents of an autoencoder:\n  "
                         + "\n  ".join(problems))


def require_labels(params: "Params") -> None:
    if getattr(params.teacher, "label_dropout", 0) and not getattr(
            params.data, "conditional", False):
        raise ValueError("teacher.label_dropout: this teacher takes no labels; set it to 0, or "
                         "data.conditional to true")


def require_guidance(params: "Params") -> None:
    guidance = getattr(params.pairs, "guidance", None)
    if guidance is None:
        return
    guides = isinstance(params.teacher, FolderSource) or getattr(params.teacher, "guide", None)
    if guidance.kind == "autoguidance" and not guides:
        raise ValueError("pairs.guidance.kind: autoguidance needs a second, weaker teacher; "
                         + way_to_a_guide(params))
    if guidance.kind == "classifier_free" and not getattr(
            params.data, "conditional", False):
        raise ValueError("pairs.guidance.kind: classifier_free needs a teacher that takes "
                         "labels; set data.conditional: true, or use autoguidance")
    if (guidance.kind == "classifier_free" and isinstance(params.teacher, TrainedTeacher)
            and not params.teacher.label_dropout):
        raise ValueError("pairs.guidance.kind: classifier_free needs a teacher that has also "
                         "learned to do without labels; set teacher.label_dropout: 0.1")


def way_to_a_guide(params: "Params") -> str:
    if "guide" in type(params.teacher).model_fields:
        return "describe one under teacher.guide"
    return (f"teacher.source: {params.teacher.source} has none: make a folder of both with kdm "
            "teacher import, the weaker one in its subfolder guide, for teacher.source: folder")


def require_states(params: "Params") -> None:
    for name, student in params.students.items():
        for where, losses in student.placed_losses():
            terms = losses.takes_states
            if terms and getattr(params.pairs, "states", None) == 0:
                raise ValueError(f"students.{name}.{where}losses.{terms[0]}: there are no "
                                 "intermediate states in the pairs; set pairs.states (4, say), "
                                 "or the weight to 0")


def require_network(params: "Params") -> None:
    """Students that leave their network, or their first weights, to the teacher need one that has
    a network."""
    if not isinstance(params.teacher, ExactTeacher | NoTeacher):
        return
    for name, student in params.students.items():
        try:
            student.model.completed(None if isinstance(params.teacher, NoTeacher) else {})
        except KDMError as error:
            raise ValueError(f"students.{name}.model.{error}") from error
        if student.init == "teacher":
            raise ValueError(f"students.{name}.init: this teacher is a closed form without a "
                             "network whose weights could be taken; use init: random")


def require_classifier(params: "Params") -> None:
    asked = {"evaluation.extractors": any(config.kind == "classifier"
                                          for config in params.evaluation.extractors),
             "filter.copies": params.filter.needs_classifier,
             **{f"students.{name}.{where}losses": "classifier" in losses.asked_networks
                for name, student in params.students.items()
                for where, losses in student.placed_losses()}}
    for where, needed in asked.items():
        if needed and params.reference.classifier is None:
            raise ValueError(f"{where}: there is no classifier; describe one under "
                             "reference.classifier, or take it out of the list")
