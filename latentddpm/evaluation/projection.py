"""A picture of the latent space: each image is a point, near to those with similar latents.

    image ─► mode of its latents ─► first 50 principal components ─► t-SNE or UMAP ─► the plane

t-SNE (van der Maaten & Hinton 2008) and UMAP (McInnes 2018) keep neighbours together; how large
clusters are, and how far apart, says nothing. Points are coloured by group: the values of a
column of the metadata, or the first words of the captions. What the picture seems to show is
counted before anything is flattened: how many of the nearest latents of an image are of its own
group, beside how many would be by chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from latentddpm.data.sources.metadata import text_entries
from latentddpm.errors import UserError, check_choice, nearest
from latentddpm.evaluation.features import FEATURES, kept_features
from latentddpm.evaluation.images import ImageSet
from latentddpm.evaluation.metrics.pairwise import check_count
from latentddpm.evaluation.report import Report, shown
from latentddpm.models.archive import weights_digest
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.autoencoder.tiling import encode
from latentddpm.utils import signals
from latentddpm.utils.figures import new_figure
from latentddpm.utils.files import atomic_path
from latentddpm.utils.pixels import from_pixels, save_png

PROJECTIONS = ("tsne", "umap")
COMPONENTS = 50
PERPLEXITY = 30
NEIGHBOURS = 10
COLOURED = 10  # groups with a colour of their own; matplotlib has as many
OTHER, NONE = "other", "(none)"
POINTS, PICTURES = "latents.png", "latents-images.png"
CELLS, SIDE = 40, 36  # of the picture made of images: cells in a row, pixels of each


class Modes:
    """The modes of images' latents, scaled, as features for `kept_features`."""

    label = "latents"

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.autoencoder, self.digest = autoencoder, weights_digest(autoencoder)

    def features(self, images: np.ndarray) -> np.ndarray:
        """Of uint8 (n, H, W, 3): float32 (n, h·w·c)."""
        mean, _ = encode(self.autoencoder, from_pixels(images))
        return np.asarray(self.autoencoder.to_latents(mean)).reshape(len(images), -1)


@signals.listening()
def project_latents(
    autoencoder: Autoencoder,
    images: ImageSet,
    out: Path,
    *,
    projection: str = "tsne",
    group_by: str | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Report:
    """Draw the images' latents in the plane: as coloured points, and as the images themselves.

    Args:
        out: folder of the two pictures; latents are found there again by the next call.
        projection: "tsne", or "umap" where umap-learn is installed.
        group_by: a column of the metadata; None for the first word of the first caption.
        seed: of the projection.

    Raises:
        UserError: too few images, no such column, a library that is not installed.
        signals.Stopped: a signal came; what was encoded is kept.
    """
    check_choice("--projection", projection, PROJECTIONS)
    check_count("a picture of latents", len(images), NEIGHBOURS + 2)
    groups, by = image_groups(images, group_by)
    flatten = _projection(projection, seed, len(images))
    new_figure(1, 1)  # what is not installed is told now, not when everything is encoded
    latents = kept_features(Modes(autoencoder), images, out / FEATURES, "latents", quiet)
    known = np.array(groups) != NONE
    same, chance = agreement(latents[known], [name for name in groups if name != NONE])
    places = flatten(latents)
    counts = Counter(groups).most_common()
    _draw_points(out / POINTS, places, groups, by)
    _draw_images(out / PICTURES, places, images)
    text = (
        f"{projection} of {len(latents)} latents of {latents.shape[1]} numbers, seed {seed}\n"
        f"{len(counts)} groups by {by}: of an image's {NEIGHBOURS} nearest latents "
        f"{shown(100 * same)} % are of its own group, by chance {shown(100 * chance)} %\n"
        f"{out / POINTS}, {out / PICTURES}"
    )
    values = {
        "projection": projection,
        "seed": seed,
        "group_by": group_by,
        "groups": dict(counts),
        "neighbours": NEIGHBOURS,
        "same_group": same,
        "same_group_by_chance": chance,
    }
    return Report(text, values)


def image_groups(images: ImageSet, group_by: str | None) -> tuple[list[str], str]:
    """What each image is coloured by, "(none)" where there is nothing; and what that is called.

    Raises:
        UserError: no such column, or hardly an image has a value there, or a caption.
    """
    catalog = images.catalog
    known = catalog.columns()
    if group_by is not None and group_by not in known:
        raise UserError(
            f"--group-by: no column {group_by!r}{nearest(group_by, known)}; "
            f"columns are {', '.join(map(repr, known)) or 'none'}"
        )
    captions = images.dataset.captions
    groups = []
    for index in map(int, images.rows):
        if group_by is None:
            found = " ".join(captions[index][:1]).split()
        else:
            row = catalog.row(index)
            found = text_entries(
                row.columns.get(group_by), group_by, catalog.row_place(index, row)
            )
        groups.append(found[0] if found else NONE)
    by = f"column {group_by!r}" if group_by else "first word of the caption"
    grouped = len(groups) - groups.count(NONE)
    if grouped <= NEIGHBOURS:
        raise UserError(
            f"--latents: {grouped} of {len(groups)} images have a {by}; "
            "name another column with --group-by"
        )
    return groups, by


def agreement(latents: np.ndarray, groups: list[str]) -> tuple[float, float]:
    """The share of images' nearest neighbours that are of their group; and by chance.

    Args:
        latents: (N, d), N more than `NEIGHBOURS`.
    """
    from sklearn.neighbors import NearestNeighbors

    _, labels, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    near = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(latents).kneighbors(return_distance=False)
    same = np.mean(labels[near] == labels[:, None])
    chance = np.mean((sizes[labels] - 1) / (len(labels) - 1))
    return float(same), float(chance)


def _projection(name: str, seed: int, count: int) -> Callable[[np.ndarray], np.ndarray]:
    """Of latents (N, d) the places in the plane (N, 2).

    Raises:
        UserError: the library is not installed.
    """
    try:
        from sklearn.decomposition import PCA

        if name == "umap":
            from umap import UMAP
        else:
            from sklearn.manifold import TSNE
    except ImportError:
        library, extra = ("umap-learn", "umap") if name == "umap" else ("scikit-learn", "plot")
        raise UserError(
            f"--projection {name} needs {library}: pip install 'latentddpm[{extra}]'"
        ) from None

    def flatten(latents: np.ndarray) -> np.ndarray:
        components = min(COMPONENTS, *latents.shape)
        reduced = PCA(components, random_state=seed).fit_transform(latents)
        if name == "umap":
            # One thread, or the seed would not decide.
            return UMAP(random_state=seed, n_jobs=1).fit_transform(reduced)
        perplexity = min(PERPLEXITY, (count - 1) / 3)
        return TSNE(perplexity=perplexity, random_state=seed).fit_transform(reduced)

    return flatten


def _draw_points(path: Path, places: np.ndarray, groups: list[str], by: str) -> None:
    """The most frequent groups each in a colour, all others in grey behind them."""
    frequent = [name for name, _ in Counter(groups).most_common() if name != NONE][:COLOURED]
    shown_as = np.array([name if name in frequent else OTHER for name in groups])
    figure = new_figure(8, 6)
    axes = figure.subplots()
    for name in [OTHER, *frequent]:
        points = places[shown_as == name]
        if len(points):
            colour = "lightgray" if name == OTHER else None
            axes.scatter(*points.T, s=6, color=colour, label=f"{name} ({len(points)})")
    axes.set(title=f"latents by {by}", xticks=[], yticks=[])
    figure.legend(loc="outside right upper", markerscale=2.5, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _draw_images(path: Path, places: np.ndarray, images: ImageSet) -> None:
    """In each cell of the plane the image nearest to its middle."""
    low, high = places.min(axis=0), places.max(axis=0)
    scaled = (places - low) / np.maximum(high - low, 1e-9) * CELLS
    cells = np.minimum(scaled.astype(int), CELLS - 1)
    off = np.square(scaled - cells - 0.5).sum(axis=1)
    chosen: dict[tuple[int, int], int] = {}
    for number in np.argsort(-off):
        chosen[tuple(cells[number])] = int(number)
    canvas = np.full((CELLS * SIDE, CELLS * SIDE, 3), 255, np.uint8)
    for (column, row), number in chosen.items():
        picture = Image.fromarray(images.read([number])[0])
        picture = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        top, left = (CELLS - 1 - row) * SIDE, column * SIDE  # the plane's second axis goes up
        canvas[top : top + SIDE, left : left + SIDE] = np.asarray(picture)
    save_png(path, canvas)
