"""One paper one file, and `augment` for data of your own."""

#: Papers whose tables `synthoma study` makes, each a file here: what is asked.
PAPERS: dict[str, str] = {
    "cpggan_metastases": "brain metastases found with CPGGAN's images (Han et al. 2019, table 1)",
    "two_step_classification": "tumour slices told from others with PGGAN's refined images "
    "(Han et al. 2019, table 1; thesis, table 2)",
    "isbi2018_brats": "brain MR of four sequences drawn by DCGAN and WGAN, and told from real "
    "(Han et al. 2018)",
    "mcgan_nodules": "lung nodules found with nodules that MCGAN drew into CT scans (Han's thesis, "
    "table 5)",
}
