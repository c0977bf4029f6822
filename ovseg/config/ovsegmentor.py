"""Configuration keys of OVSegmentor, which segments by groups learnt from image-text pairs, with their defaults.

Names are those of the published files in capitals, defaults those of its ``default.yml`` (specification, section 11).
"""

from __future__ import annotations

from typing import Any

DEFAULTS: dict[str, Any] = {
    # --- OVSegmentor: groups of patches learnt from image-text pairs alone -----------------------------------
    "MODEL.OVSEGMENTOR.IMG_ENCODER.TYPE": "GroupViT",  # the only image encoder
    "MODEL.OVSEGMENTOR.IMG_ENCODER.IMG_SIZE": 224,  # side in pixels of training images, sets the number of positions
    "MODEL.OVSEGMENTOR.IMG_ENCODER.PATCH_SIZE": 16,  # side of a patch in pixels
    "MODEL.OVSEGMENTOR.IMG_ENCODER.EMBED_DIM": 768,  # channels of tokens
    "MODEL.OVSEGMENTOR.IMG_ENCODER.NUM_HEADS": [8, 8],  # attention heads of each stage; DINO's own number is 12
    "MODEL.OVSEGMENTOR.IMG_ENCODER.EMBED_FACTORS": [1, 1],  # channels of each stage as a multiple of EMBED_DIM
    "MODEL.OVSEGMENTOR.IMG_ENCODER.DEPTHS": [6, 6],  # blocks of each stage; only two stages are supported
    "MODEL.OVSEGMENTOR.IMG_ENCODER.NUM_GROUP_TOKENS": [64, 0],  # learnable tokens that join the patches in each stage
    "MODEL.OVSEGMENTOR.IMG_ENCODER.NUM_OUTPUT_GROUPS": [8],  # groups that the patches are assigned to
    "MODEL.OVSEGMENTOR.IMG_ENCODER.MLP_RATIO": 4.0,  # hidden width of a block's MLP relative to its channels
    "MODEL.OVSEGMENTOR.IMG_ENCODER.QKV_BIAS": True,  # whether queries, keys and values have a bias
    "MODEL.OVSEGMENTOR.IMG_ENCODER.HARD_ASSIGNMENT": True,  # each patch joins one group; False: its softmax
    "MODEL.OVSEGMENTOR.IMG_ENCODER.DROP_RATE": 0.0,  # dropout after embeddings, projections and MLPs
    "MODEL.OVSEGMENTOR.IMG_ENCODER.ATTN_DROP_RATE": 0.0,  # dropout of attention weights
    "MODEL.OVSEGMENTOR.IMG_ENCODER.DROP_PATH_RATE": 0.1,  # stochastic depth of the last block; rises linearly from 0
    "MODEL.OVSEGMENTOR.IMG_ENCODER.PATCH_NORM": False,  # LayerNorm after the patch embedding
    # weights that training starts from: dino (ViT-B/16), dinob8, dinos16, dinos8, imgnet (timm), clip (OpenAI's
    # ViT-B/16), or, ours, vit (names of timm or CLIP, positions and patches resized where they differ) or none
    "MODEL.OVSEGMENTOR.IMG_ENCODER.IMGNET_PRETRAINED": "dino",
    "MODEL.OVSEGMENTOR.IMG_ENCODER.IMGNET_PRETRAINED_CHECKPOINT": "",  # file of these weights; read by training only
    "MODEL.OVSEGMENTOR.IMG_ENCODER.FIXED": False,  # do not train what these weights contain, except the positions
    # ours: bert-base-uncased, distilbert-base-uncased, roberta-base, another name of Hugging Face, a folder, or a JSON
    # file of sizes: the text encoder
    "MODEL.OVSEGMENTOR.TEXT_ENCODER.CONFIG": "bert-base-uncased",
    # ours: vocab.txt of its tokenizer (uncased WordPiece); "" = the one in the folder of CONFIG, or of its name
    "MODEL.OVSEGMENTOR.TEXT_ENCODER.VOCAB": "",
    # ours: file or folder of its weights that training starts from; "" = those of the name CONFIG. Not read where
    # MODEL.WEIGHTS has a text encoder, nor with STAGE1_CHECKPOINT
    "MODEL.OVSEGMENTOR.TEXT_ENCODER.WEIGHTS": "",
    "MODEL.OVSEGMENTOR.TEXT_ENCODER.WIDTH": 768,  # its channels; the default = those of CONFIG
    # start from pretrained weights; False initialises all of them randomly (the original: all but the embeddings)
    "MODEL.OVSEGMENTOR.TEXT_ENCODER.PRETRAINED": True,
    "MODEL.OVSEGMENTOR.TEXT_ENCODER.FIXED": False,  # do not train the text encoder; its projection trains
    "MODEL.OVSEGMENTOR.CONTRAST_TEMPERATURE": 0.07,  # temperature of the contrastive losses at the start
    # layers of the projection heads; 0: no heads; -1: one linear layer from images to the text encoder's channels
    "MODEL.OVSEGMENTOR.PROJ_NUM_LAYERS": 2,
    "MODEL.OVSEGMENTOR.PROJ_HIDDEN_DIM": 4096,  # ours: hidden channels of the heads, a constant in the original
    "MODEL.OVSEGMENTOR.OUTPUT_DIM": 256,  # channels of the joint embedding
    # words of each caption in GroupViT's multi-label loss, equal to INPUT.TEXT_AUG.MULTI_LABEL; 0: without this loss
    "MODEL.OVSEGMENTOR.MULTI_LABEL": 0,
    "MODEL.OVSEGMENTOR.MULTI_LABEL_LOSS_WEIGHT": 1.0,  # of this loss
    "MODEL.OVSEGMENTOR.SHARE_TEMPERATURE": False,  # one temperature for it and the other losses, not two
    "MODEL.OVSEGMENTOR.USE_ENTITYLOSS": False,  # train with masked entity completion
    "MODEL.OVSEGMENTOR.ENTITY_WEIGHT": 1.0,  # of this loss
    "MODEL.OVSEGMENTOR.CROSS_LAYERS": 1,  # blocks of its decoder
    "MODEL.OVSEGMENTOR.USE_MASKLOSS": False,  # train with cross-image mask consistency (stage 2)
    "MODEL.OVSEGMENTOR.MASKLOSS_WEIGHT": 0.1,  # of this loss
    "MODEL.OVSEGMENTOR.COST_TYPE": "L2",  # distance of maps in its matching: L2 or cosine
    "MODEL.OVSEGMENTOR.CROSS_THRESHOLD": 0.6,  # share of a map's maximum from which a pixel is in the teacher's mask
    "MODEL.OVSEGMENTOR.GROUP_RATIO": 0.5,  # share of groups, those least like the shared entity, without gradient
    "MODEL.OVSEGMENTOR.DUAL_DICE": False,  # also with the roles of the two images exchanged
    "MODEL.OVSEGMENTOR.TOPMASK_RATIO": 1.0,  # unused in the original
    "MODEL.OVSEGMENTOR.NUM_DEEP_STAGES": 1,  # unused in the original
    "MODEL.OVSEGMENTOR.MOMENTUM": 0.99,  # ours: of the teacher, a constant in the original
    # ours: True as the original: without the entity loss, the mask loss is not trained
    "MODEL.OVSEGMENTOR.MASKLOSS_NEEDS_ENTITYLOSS": False,
    # ours: False divides the mask loss of a batch by its images, not by the number of groups as the original
    "MODEL.OVSEGMENTOR.MASKLOSS_PER_GROUP": True,
    # ours: True hides the padding of questions from the decoder of the entity loss; the original attends to it
    "MODEL.OVSEGMENTOR.MASK_PADDING": False,
    # ours: False runs the projection heads for the losses only; the original also runs them on all tokens and on the
    # teacher's groups, which changes no loss, only the running statistics of their batch normalisation
    "MODEL.OVSEGMENTOR.EXTRA_HEAD_RUNS": True,
    # ours: False: each process has batch statistics of its own in the head of the entity loss, as in the original
    "MODEL.OVSEGMENTOR.SYNC_BRIDGE": True,
    # ours: checkpoint that stage 2 starts from: its image encoder becomes the teacher, too
    "MODEL.OVSEGMENTOR.STAGE1_CHECKPOINT": "",
    # ours: prompts of words: simple (a photo of a {}.), subset (7), full (80) or identity (the word alone)
    "MODEL.OVSEGMENTOR.TEMPLATES": "simple",
    # ours: background, where it is the first word, is where the best score is lower (0.95 for VOC, 0.35 for Context)
    "MODEL.OVSEGMENTOR.BG_THRESH": 0.95,
    "MODEL.OVSEGMENTOR.TOP_CLASSES": 5,  # ours: words that a window of an image may show, those most like the window
    "MODEL.OVSEGMENTOR.WINDOW": [448, 448],  # ours: height and width of windows in pixels; [0, 0] = the whole image
    "MODEL.OVSEGMENTOR.STRIDE": [224, 224],  # ours: distance of windows in pixels
    # --- OVSegmentor's image-text pairs ------------------------------------------------------------------------
    # folder that the images of FILE are below; "" = the folder of FILE
    "DATASETS.IMAGE_TEXT.ROOT": "",
    # table of images and captions, csv or tsv, with the columns image_id and caption, and pairindex and pairentity for
    # USE_MASKLOSS (datasets/data_process_cc12m.py); or, ours, WebDataset shards: a folder of .tar files, or a pattern
    # such as cc12m-{0000..0099}.tar; "" = the captioned data sets of DATASETS.TRAIN
    "DATASETS.IMAGE_TEXT.FILE": "",
    "INPUT.IMG_AUG.DEIT_AUG": True,  # DeiT's strong augmentation (stage 1); False: crop and mirror only (stage 2)
    "INPUT.IMG_AUG.IMG_SIZE": 224,  # side in pixels; must equal MODEL.OVSEGMENTOR.IMG_ENCODER.IMG_SIZE
    "INPUT.IMG_AUG.IMG_SCALE": [0.08, 1.0],  # share of the image's area in a crop, without DEIT_AUG: least and largest
    "INPUT.IMG_AUG.COLOR_JITTER": 0.4,  # of DEIT_AUG, where AUTO_AUGMENT is ""
    "INPUT.IMG_AUG.AUTO_AUGMENT": "rand-m9-mstd0.5-inc1",  # of DEIT_AUG, a policy of timm; "" for none
    "INPUT.IMG_AUG.INTERPOLATION": "bilinear",  # of DEIT_AUG: bilinear, bicubic or random
    "INPUT.IMG_AUG.RE_PROB": 0.25,  # of DEIT_AUG, probability of random erasing
    "INPUT.IMG_AUG.RE_MODE": "pixel",  # what erases: pixel (noise), rand (a random colour) or const (the mean)
    "INPUT.IMG_AUG.RE_COUNT": 1,  # rectangles that are erased, at most
    "INPUT.IMG_AUG.FLIP_PROB": 0.5,  # ours: of mirrored images; 0 where captions name left and right
    "INPUT.IMG_AUG.EXIF": False,  # ours: True rotates images as their EXIF data say; the original does not
    # tokens of a text with the marks of its start and end, padded or truncated; at most what TEXT_ENCODER takes
    "INPUT.TEXT_AUG.MAX_SEQ_LEN": 77,
    "INPUT.TEXT_AUG.MULTI_LABEL": 0,  # words drawn from each caption for the multi-label loss
    "INPUT.TEXT_AUG.WORD_TYPE": "noun",  # which words: noun, or, ours, entity (those of ENTITIES)
    # ours: questions as in the original, each "s" removed from both ends of words ("itting on the ofa"); False removes
    # the ending of possessives only
    "INPUT.TEXT_AUG.LEGACY_STRIP": True,
    # ours: words that questions hide and pairs of images share: "" = the original's 73; a label set, a file with one
    # word per line, or toy
    "INPUT.TEXT_AUG.ENTITIES": "",
    # ours: beginnings of answers: full (80 templates), subset (7), simple (a photo of a) or identity (nothing)
    "INPUT.TEXT_AUG.TEMPLATES": "full",
    # --- zero-shot classification of whole images ----------------------------------------------------------------
    # ours: seg, segmentation of DATASETS.TEST; cls, zero-shot classification of TEST.ZERO_SHOT (OVSegmentor)
    "TEST.TASKS": ["seg"],
    "TEST.ZERO_SHOT.ROOT": "",  # ours: folder of the images of a classification
    "TEST.ZERO_SHOT.FILE": "",  # ours: their table, csv or tsv, with the columns image_id and label (a number from 0)
    "TEST.ZERO_SHOT.BATCH": 64,  # ours: images in a batch of each process
    "TEST.ZERO_SHOT.TEMPLATES": "subset",  # ours: prompts of its words: simple (1), subset (7), full (80) or identity
    # ours: imagenet, the 1,000 names of CLIP's authors; "" = the column label_name of the table; or a file with a line
    # for each class
    "TEST.ZERO_SHOT.NAMES": "imagenet",
}

PRETRAINED = ("dino", "dinob8", "dinos16", "dinos8", "imgnet", "clip", "vit", "none")
WITHOUT_EFFECT = {
    "MODEL.OVSEGMENTOR.TOPMASK_RATIO": "set MODEL.OVSEGMENTOR.GROUP_RATIO",
    "MODEL.OVSEGMENTOR.NUM_DEEP_STAGES": "it has none in the original, either",
}
