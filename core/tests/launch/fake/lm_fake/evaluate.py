"""Like pretrain, but no training."""

from lm_fake.pretrain import main

if __name__ == "__main__":
    main()
