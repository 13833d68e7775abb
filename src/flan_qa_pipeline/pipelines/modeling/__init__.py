from .pipeline import create_merge_pipeline as create_merge_pipeline
from .pipeline import create_pipeline as create_pipeline
