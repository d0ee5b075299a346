"""Projection of latents into the plane: each image is a point, near those with similar latents.

The latents of a model of pixels are the pixels themselves.

    image ─► mode of its latents ─► first 50 principal components ─► t-SNE or UMAP ─► the plane

t-SNE (van der Maaten & Hinton 2008) and UMAP (McInnes et al. 2018) keep neighbours together; the
sizes of clusters and the distances between them mean nothing. Points are coloured by group: the
value of a column of the metadata, or the first word of the caption. A number beside the picture
comes from the latents themselves, before the projection: the share of an image's nearest
neighbours that belong to its group, and the share expected by chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from latentddpm.choices import PROJECTIONS
from latentddpm.data.sources.metadata import text_entries, with_folder
from latentddpm.errors import UserError, check_choice, nearest
from latentddpm.evaluation.features import FEATURES, kept_features
from latentddpm.evaluation.images import ImageSet
from latentddpm.evaluation.metrics.pairwise import check_count
from latentddpm.evaluation.report import Report, shown
from latentddpm.models.archive import weights_digest
from latentddpm.models.autoencoder.pixel_space import PixelSpace
from latentddpm.models.autoencoder.tiling import FirstStage, encode
from latentddpm.utils import signals
from latentddpm.utils.figures import new_figure
from latentddpm.utils.files import atomic_path
from latentddpm.utils.images.pixel_format import PixelFormat
from latentddpm.utils.pixels import save_png

COMPONENTS = 50
PERPLEXITY = 30
NEIGHBOURS = 10
COLOURED = 10  # groups with a colour of their own; matplotlib has 10 colours
OTHER, NONE = "other", "(none)"
POINTS, PICTURES = "latents.png", "latents-images.png"
CELLS, SIDE = 40, 36  # of the picture made of images: cells in a row, side of a cell in pixels


class Modes:
    """Modes of the posterior, scaled, as features for `kept_features`.

    Args:
        autoencoder: to encode with.
        pixels: format of the images.
    """

    def __init__(self, autoencoder: FirstStage, pixels: PixelFormat) -> None:
        none = isinstance(autoencoder, PixelSpace)
        self.autoencoder, self.pixels = autoencoder, pixels
        self.digest = "" if none else weights_digest(autoencoder)
        self.label = "pixels" if none else "latents"
        if not pixels.is_default:
            self.label += f" of {pixels}"

    def features(self, images: np.ndarray) -> np.ndarray:
        """Flattened latents of images.

        Args:
            images: values (n, H, W, C) in the format.

        Returns:
            float32 (n, h·w·c).
        """
        mean, _ = encode(self.autoencoder, self.pixels.to_images(images))
        return np.asarray(self.autoencoder.to_latents(mean)).reshape(len(images), -1)


@signals.listening()
def project_latents(
    autoencoder: FirstStage,
    images: ImageSet,
    out: Path,
    *,
    projection: str = "tsne",
    group_by: str | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Report:
    """Plot the latents of images in the plane: as coloured points, and as the images themselves.

    Args:
        autoencoder: to encode with.
        images: more than `NEIGHBOURS` + 1.
        out: folder for the two pictures, and for the latents, which the next call reads again.
        projection: "tsne", or "umap", which needs the package umap-learn.
        group_by: column of the metadata; None for the first word of the first caption.
        seed: of the projection.
        quiet: show no progress.

    Returns:
        Report with the groups' sizes and the shares of neighbours of the same group.

    Raises:
        UserError: too few images, no such column, or a package that is not installed.
        signals.Stopped: a signal came; the encoded latents are kept.
    """
    check_choice("--projection", projection, PROJECTIONS)
    check_count("a picture of latents", len(images), NEIGHBOURS + 2)
    groups, by = image_groups(images, group_by)
    flatten = _projection(projection, seed, len(images))
    new_figure(1, 1)  # a missing matplotlib is an error now, not after everything is encoded
    modes = Modes(autoencoder, images.pixels)
    latents = kept_features(modes, images, out / FEATURES, modes.label, quiet, images.values)
    known = np.array(groups) != NONE
    same, chance = agreement(latents[known], [name for name in groups if name != NONE])
    places = flatten(latents)
    counts = Counter(groups).most_common()
    _draw_points(out / POINTS, places, groups, by)
    _draw_images(out / PICTURES, places, images)
    text = (
        f"{projection} of {len(latents)} {modes.label} of {latents.shape[1]} numbers, "
        f"seed {seed}\n"
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
    """Groups that images are coloured by.

    Args:
        images: to group.
        group_by: column of the metadata; None for the first word of the first caption.

    Returns:
        The group of each image, "(none)" for an image without, and a name of the grouping.

    Raises:
        UserError: no such column, or not more than `NEIGHBOURS` images with a group.
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
                with_folder(row.columns, catalog.name(index)).get(group_by),
                group_by,
                catalog.row_place(index, row),
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
    """Share of the nearest neighbours that belong to an image's own group.

    Args:
        latents: (N, d), N > `NEIGHBOURS`.
        groups: of the N images.

    Returns:
        The mean share, and the share expected by chance, both in [0, 1].
    """
    from sklearn.neighbors import NearestNeighbors

    _, labels, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    near = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(latents).kneighbors(return_distance=False)
    same = np.mean(labels[near] == labels[:, None])
    chance = np.mean((sizes[labels] - 1) / (len(labels) - 1))
    return float(same), float(chance)


def _projection(name: str, seed: int, count: int) -> Callable[[np.ndarray], np.ndarray]:
    """Function that projects latents (N, d) to points in the plane (N, 2).

    Raises:
        UserError: the package is not installed.
    """
    try:
        from sklearn.decomposition import PCA

        if name == "umap":
            from umap import UMAP
        else:
            from sklearn.manifold import TSNE
    except ImportError:
        library = "umap-learn scikit-learn" if name == "umap" else "scikit-learn"
        raise UserError(f"--projection {name} needs packages: pip install {library}") from None

    def flatten(latents: np.ndarray) -> np.ndarray:
        components = min(COMPONENTS, *latents.shape)
        reduced = PCA(components, random_state=seed).fit_transform(latents)
        if name == "umap":
            # With more threads UMAP is not reproducible.
            return UMAP(random_state=seed, n_jobs=1).fit_transform(reduced)
        perplexity = min(PERPLEXITY, (count - 1) / 3)
        return TSNE(perplexity=perplexity, random_state=seed).fit_transform(reduced)

    return flatten


def _draw_points(path: Path, places: np.ndarray, groups: list[str], by: str) -> None:
    """Plot the points: the most frequent groups in colours, the others in grey behind them."""
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
    """Draw a picture of images: in each cell of the plane the one nearest to the cell's centre."""
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
