"""The four stages of a job, in order: intake, generate, export, deliver."""
