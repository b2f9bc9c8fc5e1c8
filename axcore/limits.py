"""Limits on what is read from files that others wrote; docs/limits.md lists them.

Each is several times what published models and real results need. What is larger is refused before
it is read, so that a damaged or hostile file costs neither memory nor time.
"""

from __future__ import annotations

KB, MB = 1 << 10, 1 << 20

CONFIG_BYTES = 4 * MB
"""``config.json``, processor and tokenizer settings, chat templates; published: below 0.3 MB."""

TOKENIZER_BYTES = 48 * MB
"""``tokenizer.json``, ``vocab.json``, ``merges.txt``, ``tokenizer.model``; published: 35 MB."""

CODE_FILES = 100
"""Python files beside the weights, copied on request and never imported; published: 7."""

INDEX_BYTES = 16 * MB
"""The safetensors index: one of 100,000 tensors has 10 MB."""

HEADER_BYTES = 16 * MB
"""The header of one safetensors file: one of 100,000 tensors has 12 MB."""

RECORD_BYTES = 8 * MB
"""Manifests, step records, checksums and other JSON that axcore wrote: 50,000 files need that."""

TENSORS = 100_000
"""Tensors of a checkpoint; published: 92,000, in a mixture of 256 experts."""

SHARDS = 1000
"""safetensors files of a checkpoint; published: 191."""

RANK = 8
"""Dimensions of a tensor; published: 5, a convolution over time, rows and columns."""

NAME_LENGTH = 500
"""Characters of a tensor's name; published: below 120."""

LAYERS = 1000
"""Layers of a tower or language model; published: 126."""

PORTS = 64
"""Inputs and outputs of a layer of a language model; published: 8."""

COUNT = 1 << 24
"""Any other number of things in a config: widths, heads, words, positions; published: 10,485,760
positions."""

NESTING = 64
"""Objects and lists inside one another in a JSON file."""

CONTAINERS = 1_000_000
"""Objects and lists in a JSON file; the header of 100,000 tensors has 300,000."""

VALUES = 2_000_000
"""Values in a JSON file, or lines of a vocabulary; the largest tokenizer has 1.4 million."""

LOG_BYTES = 256 * MB
"""What a log keeps of one run of a vendor's tool; real ones are below 50 MB."""

LOG_END_BYTES = 64 * KB
"""The end of a log, in which a known failure is looked for: a Python traceback has below 20 kB."""

ANSWER_BYTES = 1 * MB
"""What a vendor's tool says when it is asked for its version or its help: some 10 kB."""

ANSWER_S = 600
"""Seconds in which it answers: a container may have to be fetched first."""

IMAGE_BYTES = 128 * MB
"""An encoded image, read whole; published: 75 MB for 200 megapixels as JPEG."""

IMAGE_MEMORY_BYTES = 496 * MB
"""What decoding an image may take: 65 megapixels as JPEG or PNG, fewer as WebP or progressive."""

IMAGE_PARTS = 100_000
"""Chunks of a PNG, segments of a JPEG; the smallest in use are of 4 kB each."""

JPEG_SCANS = 20
"""Passes over the pixels of a progressive JPEG of the largest size; published: 10."""

EXIF_BYTES = 64 * KB
"""EXIF of an image: what the standard allows."""

FOLDER_FILES = 200_000
"""Files below a folder of images; COCO's training images are 118,287."""

ARCHIVE_BYTES = 256 * MB
"""Of a compressed archive of images, unpacked: its images stay in memory."""

ARCHIVE_RATIO = 16
"""Size of a compressed TAR, unpacked, over its own; photographs and floats: below 4."""

ARCHIVE_DIRECTORY_BYTES = 8 * MB
"""The directory of a ZIP; one of 50,000 files has 5 MB."""

ARCHIVE_HEADERS_BYTES = 32 * MB
"""All headers of a TAR; one of 20,000 files has 30 MB at most."""

ARCHIVE_HEADER_BYTES = 256 * KB
"""What a TAR says of one file; published: 2 kB."""

ARCHIVE_DOWNLOAD_BYTES = 64 << 30
"""A calibration archive that is fetched; published: below 1 GB."""

TOKEN_IDS = 1_000_000
"""Ids of tokens are below; the largest published vocabulary has 0.26 million."""

TOKEN_CHARS = 4096
"""One token: published ones have up to 512."""

ADDED_TOKENS = 65_536
"""Added tokens: published tokenizers have up to 6,400."""

TOKENIZER_STEPS = 64
"""Steps by which a tokenizer changes or cuts text, or makes text of tokens; published: 10."""

TOKENIZER_GROWTH = 512
"""How many bytes those steps together may make of one; published: 264, with a table."""

PATTERN_CHARS = 4096
"""One regular expression of a tokenizer; published: 600."""

PATTERN_PARTS = 4096
"""Parts of it, those that are repeated counted as often; published: 1,200."""

PATTERN_WAYS = 128
"""Ways to match it at one place of a text, see `axcore.language.patterns`; published: 50."""

PROMPT_CHARS = 256 * KB
"""Text of a prompt: several times what the contexts of boards hold."""

PREDICTIONS_BYTES = 16 * MB
"""A file of answers: 12,000 images at 256 tokens each."""

ARRAY_BYTES = 32 * MB
"""Of one array to calibrate with; published: 1.5 MB for half a minute of log-mel features."""

FEATURES_BYTES = 128 * MB
"""Features of one image; published: 32 MB for 16,384 rows of 1024 halves."""

CLIP_LAYERS = 256
"""Layers of a tower of a CLIP; published: 48."""

CLIP_MERGES_BYTES = 16 * MB
"""CLIP's vocabulary, unpacked; the one that there is has 3.2 MB."""

PLOT_BYTES = 64 * MB
"""A plot that is replaced; those that are drawn have 0.1 MB."""

MEASUREMENTS = 1000
"""Batch sizes, or lengths of prompts, of one sweep."""

TEXT_BYTES = 16 * MB
"""Text for calibration; of it 262,144 tokens are used, about 1 MB."""

MESSAGE_BYTES = 64 * KB
"""A line by which a worker reports."""

QUANT_TABLE_BYTES = 256 * MB
"""``quant_axmodel.json`` of Pulsar2: some hundred bytes a tensor, 20 MB for a large tower."""

GRAPH_BYTES = 64 * MB
"""A traced graph in the user's cache, weights excluded; those of families: below 10 MB."""

GRAPHS_BYTES = 512 * MB
"""All traced graphs in the user's cache; those that were not used for longest are removed."""
