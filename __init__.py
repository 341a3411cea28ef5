"""dtrap: tuning vision-language models on a few images of a distant domain.

Method: "Mind the Discriminability Trap in Source-Free Cross-domain Few-shot Learning", CVPR 2026, arXiv 2603.13341.
Importing this package alone loads neither torch nor lightning; the parts are in `dtrap.lightning_modules`,
`dtrap.datamodules` and `dtrap.callbacks`.
"""

__version__ = "0.1.0"
