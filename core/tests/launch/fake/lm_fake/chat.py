"""Like pretrain, but one that reads."""

from lm_fake.pretrain import main

if __name__ == "__main__":
    main()
