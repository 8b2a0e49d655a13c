"""Students from and for others: folders with a model card, and the Hugging Face hub.

A folder of a run, `data/students/NAME`, is one, too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdm_core.compute import seeded
from kdm_core.errors import DataError, KDMError
from kdm_core.serialization import CONFIG, WEIGHTS, write_atomic
from kdm_core.sharing.card import CARD, model_card
from kdm_core.sharing.folder import AUTOENCODER, check_student, load_student, save_student
from kdm_core.students.base import Student


def from_pretrained(source: str | Path, revision: str | None = None) -> Student:
    """A student from a folder, or from OWNER/NAME on the Hugging Face hub.

    Args:
        source: a folder that is there, or a name on the hub.
        revision: a branch, tag or commit of the hub; None for its main branch.

    Returns:
        The student, in eval mode on the CPU.

    Raises:
        DataError: there is no such student, or its files are damaged or hold something else.
        MismatchError: its weights are of another architecture than its configuration.
        KDMError: the package for the hub is not installed.
    """
    folder = find_student(source, revision)
    check_student(folder)
    # Loading draws weights before it overwrites them: no reason to disturb the caller's.
    with seeded(0):
        student, _ = load_student(folder)
    return student


def save_pretrained(student: Student, folder: str | Path, card: str | None = None) -> str:
    """Write config.json, weights.safetensors and README.md, each of them all at once.

    Args:
        folder: made where it is missing; an older student in it is replaced.
        card: the model card; None for one that says what the student itself knows.

    Returns:
        The fingerprint.

    Raises:
        DataError: they cannot be written.
    """
    target = Path(folder)
    fingerprint = save_student(target, student, student.provenance)
    text = model_card(student, fingerprint) if card is None else card
    write_atomic(target / CARD, text.encode())
    return fingerprint


def push_to_hub(
    student: Student,
    repo_id: str,
    card: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "A one-step student",
    token: str | None = None,
) -> str:
    """Upload what `save_pretrained` writes to the hub, in one commit.

    Args:
        repo_id: OWNER/NAME; made where it is missing.
        card: as of `save_pretrained`.
        private: whether a new repository is; None for the owner's default.
        revision: the branch; None for the main one.
        message: of the commit.
        token: None for the one of `hf auth login`.

    Returns:
        The commit's address.

    Raises:
        DataError: it could not be uploaded.
        KDMError: the package for the hub is not installed.
    """
    with reaching_hub(f"{repo_id} could not be pushed", "check the name, the network and that you "
                      "are logged in (hf auth login)") as hub:

        # Here and not a base of students, which would need the package wherever a student is used.
        class Upload(hub.ModelHubMixin):  # type: ignore[misc, name-defined]
            def _save_pretrained(self, save_directory: Path) -> None:
                save_pretrained(student, save_directory, card)

        commit = Upload().push_to_hub(repo_id, private=private, branch=revision,
                                      commit_message=message, token=token)
    return str(commit)


def find_student(source: str | Path, revision: str | None = None) -> Path:
    """The folder of a student, downloaded if need be.

    Raises:
        DataError: there is no such folder, or it could not be downloaded.
        KDMError: the package for the hub is not installed.
    """
    name = str(source)
    if Path(source).is_dir():
        return Path(source)
    if not isinstance(source, str) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise DataError(f"student: {name} is no folder: correct it to one, or to OWNER/NAME on the "
                        "hub")
    with reaching_hub(f"{name} is no folder here and could not be fetched from the hub",
                      "check the name, the revision and the network") as hub:
        files = [CONFIG, WEIGHTS, f"{AUTOENCODER}/{CONFIG}", f"{AUTOENCODER}/{WEIGHTS}"]
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=files))


@contextmanager
def reaching_hub(failure: str, remedy: str) -> Iterator[Any]:
    """The hub's library, with one clear message for whatever goes wrong in it."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise KDMError("student: the hub needs the package huggingface_hub: "
                       "pip install 'kdm-distill[hub]'") from error
    try:
        yield huggingface_hub
    except KDMError:
        raise
    except Exception as error:  # its own, those of its HTTP client, and those of the file system
        text = " ".join(str(error).split())[:300]
        raise DataError(f"student: {failure} ({type(error).__name__}: {text}): {remedy}") from error
