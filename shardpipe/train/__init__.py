"""`shardpipe-train`: CTC training that resumes from a count of consumed samples."""
