"""Files of complete data sets, for preparation and checks.

Counts and checksums are those of the released file lists (see ``datasets/README.md`` for the sources). A checksum is
that of :func:`ovseg.data.file_list.file_list_checksum`.
"""

from __future__ import annotations

from dataclasses import dataclass

ADE_TRAINING = "6bb3631cc6ddf61eca5a9427027776105361247c675064347e7d711dd847c408"
ADE_VALIDATION = "302fe0402c1fa1a83d54bc5d20723d53e2367320105f036673dafb1bd88aff9d"
COCO_VAL = "e1cc220cde76f9a1fc39aff5b5f8c0b128de8b071602e6d57f262697116e2906"
CONTEXT_VAL = "b9924d222e8429efb4c8677e5ab5f84ad1374ecbff34980afa7f121bcf42b891"
VOC_TRAIN = "aa623bd2c8ce4443a8aaae51c524c0eb165e8e44caf6aa9e3ad33d7b75a3ef20"
VOC_TRAIN_AUG = "d1326bd532648d73bc4b1bd275434eba81930982dc7401a65a8cecb26c028e24"
VOC_VAL = "cdc1326d12f69ce5153aa5da04a4d8783e146868d42d19f82f44e74b97ac907d"


# where people keep the list of the augmented training set, which is not in the released archives
VOC_TRAIN_AUG_LISTS = (
    "SegmentationAug/train_aug.txt",
    "Segmentation/train_aug.txt",
    "Segmentation/trainaug.txt",
)
CONTEXT_LISTS = {
    "val": ("pascalcontext_val.txt", "ImageSets/SegmentationContext/val.txt"),
    "train": ("ImageSets/SegmentationContext/train.txt",),
}


@dataclass(frozen=True)
class Labels:
    """What the label files of a folder hold.

    Attributes:
        classes: values are 0 .. classes - 1.
        void: one more value; 65535 means 16 bit.
        images: folder of the images; each label file must have one, of its size. None: not checked.
        image_suffix: rest of the images' names.
        all_occur: the complete folder holds every class.
        may_lack: where every pixel is ignored there is no file.
    """

    classes: int
    void: int | None = 255
    images: str | None = None
    image_suffix: str = ".jpg"
    all_occur: bool = False
    may_lack: bool = False


@dataclass(frozen=True)
class Folder:
    """One folder of a data set, below the root.

    Attributes:
        path: with ``/``.
        counts: numbers of files that the complete folder may have; empty: any.
        suffix: rest of the names.
        checksum: of the stems, when there are ``counts[0]`` of them.
        names: where the stems are listed: a pattern such as ``ADE_val_{:08d}``, counted from 1, or list files, of which
            the first that is there counts; by default those of the labels' images.
        labels: what they hold; None: not label files.
        made: by a script of ``datasets/``; the others are as released.
        short_side: largest length of the images' shorter side, in pixels.
        recursive: files lie in folders below, too.
    """

    path: str
    counts: tuple[int, ...] = ()
    suffix: str = ".jpg"
    checksum: str | None = None
    names: tuple[str, ...] = ()
    labels: Labels | None = None
    made: bool = False
    short_side: int | None = None
    recursive: bool = False


def _ade20k_150() -> list[Folder]:
    base, folders = "ADEChallengeData2016", []
    for split, short, count, checksum in (
        ("training", "train", 20_210, ADE_TRAINING),
        ("validation", "val", 2_000, ADE_VALIDATION),
    ):
        common = {"counts": (count,), "checksum": checksum, "names": (f"ADE_{short}_{{:08d}}",)}
        images = f"{base}/images/{split}"
        made = Labels(150, 255, images, all_occur=split == "validation")
        folders += [
            Folder(images, **common),
            Folder(f"{base}/annotations/{split}", suffix=".png", labels=Labels(151, None, images), **common),
            Folder(f"{base}/annotations_detectron2/{split}", suffix=".png", labels=made, made=True, **common),
        ]
    return folders


def _ade20k_847() -> list[Folder]:
    base, folders = "ADE20K_2021_17_01", []
    for split, count, checksum, names in (
        ("training", 25_574, None, ()),
        ("validation", 2_000, ADE_VALIDATION, ("ADE_val_{:08d}",)),
    ):
        common = {"counts": (count,), "checksum": checksum, "names": names, "made": True}
        images = f"{base}/images_detectron2/{split}"
        folders += [
            Folder(images, short_side=512, **common),
            Folder(
                f"{base}/annotations_detectron2/{split}", suffix=".tif", labels=Labels(847, 65535, images), **common
            ),
        ]
    return folders


_COCO = (("train2017", 118_287, None), ("val2017", 5_000, COCO_VAL))


def _coco(*parts: tuple[str, Labels | None, bool]) -> list[Folder]:
    """Return COCO's images, and for each (path with {split}, labels, made) a folder of as many PNGs."""
    folders = [Folder(f"coco/{split}", (count,), checksum=checksum) for split, count, checksum in _COCO]
    for path, labels, made in parts:
        for split, count, checksum in _COCO:
            here = labels and Labels(
                labels.classes, labels.void, f"coco/{split}", ".jpg", labels.all_occur and made, labels.may_lack
            )
            folder = f"coco/{path.format(split=split)}"
            folders.append(Folder(folder, (count,), ".png", checksum, labels=here, made=made))
    return folders


def _voc() -> list[Folder]:
    base = "VOCdevkit/VOC2012"
    images, folders = f"{base}/JPEGImages", [Folder(f"{base}/JPEGImages")]
    raw = Labels(21, 255, images)
    folders += [
        Folder(f"{base}/{name}", suffix=".png", labels=raw) for name in ("SegmentationClass", "SegmentationClassAug")
    ]
    for variant, classes in (("", 20), ("_bg", 21), ("_21", 21)):
        for split, count, checksum, lists in (
            ("val", 1_449, VOC_VAL, ("Segmentation/val.txt",)),
            ("train", 1_464, VOC_TRAIN, ("Segmentation/train.txt",)),
            ("train_aug", 10_582, VOC_TRAIN_AUG, VOC_TRAIN_AUG_LISTS),
        ):
            folders.append(
                Folder(
                    f"{base}/annotations_detectron2{variant}/{split}",
                    (count,),
                    ".png",
                    checksum,
                    tuple(f"{base}/ImageSets/{name}" for name in lists),
                    Labels(classes, 255, images, all_occur=True, may_lack=classes == 20),
                    made=True,
                )
            )
    return folders


def _pascal_context() -> list[Folder]:
    base = "VOCdevkit/VOC2010"
    images, folders = (
        f"{base}/JPEGImages",
        [Folder(f"{base}/JPEGImages"), Folder(f"{base}/trainval", (10_103,), ".mat")],
    )
    for split, counts, checksum in (("val", (5_104, 5_105), CONTEXT_VAL), ("train", (4_998, 4_999, 4_996), None)):
        lists = tuple(f"{base}/{name}" for name in CONTEXT_LISTS[split])
        for name, classes, void in (
            ("pc59", 59, 255),
            ("pc459", 459, 65535),
            ("pc59_alphabetical", 59, 255),
            ("pc60", 60, None),
        ):
            suffix = ".png" if classes < 256 else ".tif"
            labels = Labels(classes, void, images)
            path = f"{base}/annotations_detectron2/{name}_{split}"
            folders.append(Folder(path, counts, suffix, checksum, lists, labels, made=True))
    return folders


def _cityscapes() -> list[Folder]:
    folders = []
    for split, count in (("train", 2_975), ("val", 500)):
        images = f"cityscapes/leftImg8bit/{split}"
        raw, made = (Labels(n, void, images, "_leftImg8bit.png") for n, void in ((34, None), (19, 255)))
        gt = f"cityscapes/gtFine/{split}"
        folders += [
            Folder(images, (count,), "_leftImg8bit.png", recursive=True),
            Folder(gt, (count,), "_gtFine_labelIds.png", labels=raw, recursive=True),
            Folder(gt, (count,), "_gtFine_labelTrainIds.png", labels=made, recursive=True, made=True),
        ]
    return folders


# by the names of the scripts: prepare_<key>.py
FOLDERS: dict[str, tuple[Folder, ...]] = {
    "ade20k_150": tuple(_ade20k_150()),
    "ade20k_847": tuple(_ade20k_847()),
    "coco_stuff": tuple(
        _coco(
            ("stuffthingmaps/{split}", Labels(182, 255), False),
            ("stuffthingmaps_detectron2/{split}", Labels(171, 255, all_occur=True, may_lack=True), True),
            ("stuffthingmaps_detectron2/{split}_base", Labels(156, 255, may_lack=True), True),
            ("stuffthingmaps_detectron2/{split}_novel", Labels(15, 255, may_lack=True), True),
        )
    ),
    "coco_object": tuple(
        _coco(("stuffthingmaps/{split}", Labels(182, 255), False), ("coco_object/{split}", Labels(81, None), True))
    ),
    "coco_panoptic": tuple(
        _coco(
            ("panoptic_{split}", None, False),
            ("panoptic_semseg_{split}", Labels(133, 255), True),
            ("panoptic_stuff_{split}", Labels(54, 255), True),
        )
    ),
    "voc": tuple(_voc()),
    "pascal_context": tuple(_pascal_context()),
    "cityscapes": tuple(_cityscapes()),
}


def expected_files(path: str, found: int) -> int:
    """Return the number of files of a folder of :data:`FOLDERS` when complete.

    Of several possible numbers it is ``found``, if that is one of them. KeyError for a folder without such a number.
    """
    counts = {folder.path: folder.counts for folders in FOLDERS.values() for folder in folders if folder.counts}
    return found if found in counts[path] else counts[path][0]
