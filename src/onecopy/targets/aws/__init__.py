"""The AWS target: an EKS cluster and a model bucket by one CloudFormation stack, then the kubernetes target on it."""
