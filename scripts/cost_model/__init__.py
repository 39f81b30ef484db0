"""What a job costs on Modal, and which autoscaler settings to deploy. An operator's tool, no part of the product."""
