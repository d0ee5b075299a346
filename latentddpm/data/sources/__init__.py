"""Sources of images: folders and shards (tar, TFRecord, ArrayRecord), with their captions."""
