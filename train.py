from seqzoo.entry import main

raise SystemExit(main())
