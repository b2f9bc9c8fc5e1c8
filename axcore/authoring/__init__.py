"""For plugin authors: `axcore plugins new` writes a package, `axcore plugins check` judges one."""
