"""Cases, boxes, dataset folders, patient splits, preparation, augmentation, batches."""
