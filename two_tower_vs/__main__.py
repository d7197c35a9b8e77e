from two_tower_vs.cli import main
raise SystemExit(main())
